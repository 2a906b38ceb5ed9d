"""The broker stopped while it has an EndTxn, and the next transaction at once (hole j)."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.stream import StreamScenario
from tests.conftest import Unique
from tests.faults.load import finish, go_on, keep, progress
from tests.faults.network.site import Site, site
from tests.support.proxy import END_TXN, Request
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


def _attack(place: Site, home: Path, name: str, seed: int, blows: list[str]) -> None:
    with StreamScenario(place.direct, home, name, seed, BOOTSTRAP_SERVERS=place.proxy.address) as scenario:
        fleet, counts, proxy, broker = scenario.fleet, Counter[str](), place.proxy, place.broker
        scenario.feeder.start()
        progress(scenario)
        for blow in blows:
            struck = threading.Event()

            def of_ours(request: Request) -> bool:
                return request.api == END_TXN and request.names(name)

            def kill(done: threading.Event = struck) -> None:
                broker.kill()
                done.set()

            def pause(done: threading.Event = struck) -> None:
                assert broker.pid is not None
                os.kill(broker.pid, signal.SIGSTOP)
                done.set()

            if blow == "kill before":  # the broker never had it: it is sent to the next life
                held = proxy.hold(of_ours, cut=True)
                wait_until(lambda h=held: keep(scenario) or h.caught.is_set(), 120, "an EndTxn", every=0.02)
                kill()
            else:  # it has it, and may have done all of it, a part, or nothing
                proxy.call(of_ours, pause if "pause" in blow else kill)
                wait_until(lambda s=struck: keep(scenario) or s.is_set(), 120, "an EndTxn", every=0.02)
            if "pause" in blow:
                assert broker.pid is not None
                go_on(scenario, fleet.random.uniform(8, 20) if "long" in blow else fleet.random.uniform(1, 4))
                os.kill(broker.pid, signal.SIGCONT)
            else:
                broker.start()
            counts[f"{blow} in EndTxn"] += 1
            progress(scenario)
        finish(scenario, "broker stopped during EndTxn", counts)


def test_a_stream_is_exact_after_its_broker_died_in_the_end_of_a_transaction(
    tmp_path: Path, home: Path, unique: Unique, seed: int
) -> None:
    with site(tmp_path / "kafka", 0) as place:
        _attack(place, home, unique("ended"), seed, ["kill after"])


@pytest.mark.faults
@pytest.mark.parametrize("version", [0, 2], ids=["tv0", "tv2"])
def test_a_stream_is_exact_after_its_broker_died_or_paused_in_ends_of_transactions(
    tmp_path: Path, home: Path, unique: Unique, seed: int, version: int
) -> None:
    with site(tmp_path / "kafka", version) as place:
        blows = ["kill before", "kill after", "pause", "kill after", "long pause"]
        _attack(place, home, unique("ended"), seed, blows)
