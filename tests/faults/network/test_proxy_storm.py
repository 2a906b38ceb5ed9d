"""All that the proxy can do, at random, under load."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.stream import StreamScenario
from tests.conftest import Unique
from tests.faults.load import finish, go_on, progress
from tests.faults.network.site import Site, site
from tests.support.proxy import ADD_OFFSETS, ADD_PARTITIONS, END_TXN, PRODUCE, TXN_OFFSET_COMMIT, Held, Request

pytestmark = [pytest.mark.chaos, pytest.mark.faults, pytest.mark.timeout(1200)]

BLOWS = 25
APIS = {
    PRODUCE: "Produce",
    ADD_PARTITIONS: "AddPartitionsToTxn",
    ADD_OFFSETS: "AddOffsetsToTxn",
    END_TXN: "EndTxn",
    TXN_OFFSET_COMMIT: "TxnOffsetCommit",
}


def _blow(scenario: StreamScenario, place: Site, way: str, held: list[Held]) -> None:
    rng, proxy = scenario.fleet.random, place.proxy
    api = rng.choice(sorted(APIS))

    def match(request: Request) -> bool:
        return request.api == api

    if way == "delay":
        proxy.delay(rng.uniform(0, 0.3), rng.uniform(0, 0.3))
        go_on(scenario, rng.uniform(1, 5))
        proxy.delay()
    elif way == "stall":
        proxy.stall(up=rng.random() < 0.6, down=rng.random() < 0.6)
        go_on(scenario, rng.uniform(0.5, 14))
        proxy.stall()
    elif way == "cut":
        proxy.cut()
    elif way == "refuse":
        proxy.refuse(True)
        proxy.cut()
        go_on(scenario, rng.uniform(0.5, 10))
        proxy.refuse(False)
    elif way == "drop":
        proxy.drop(match)
    elif way == "cut answer":
        proxy.cut_answer(match)
    else:  # kept back, and sent when others have followed it
        held.append(proxy.hold(match, cut=way == "hold and cut"))


def _send_late(held: list[Held], counts: Counter[str]) -> None:
    for one in [h for h in held if h.caught.is_set()]:
        error = one.release()
        counts[f"sent late, error {error}" if error is not None else "sent late"] += 1
        held.remove(one)


@pytest.mark.parametrize("version", [0, 2], ids=["tv0", "tv2"])
def test_a_stream_is_exact_over_a_network_that_does_everything_wrong(
    tmp_path: Path, home: Path, unique: Unique, seed: int, version: int
) -> None:
    ways = ["delay", "stall", "cut", "refuse", "drop", "cut answer", "hold", "hold and cut", "hold and cut"]
    with (
        site(tmp_path / "kafka", version) as place,
        StreamScenario(place.direct, home, unique("storm"), seed, BOOTSTRAP_SERVERS=place.proxy.address) as scenario,
    ):
        rng, counts, held = scenario.fleet.random, Counter[str](), list[Held]()
        scenario.feeder.start()
        progress(scenario)
        for _ in range(BLOWS):
            way = rng.choice(ways)
            _blow(scenario, place, way, held)
            counts[way] += 1
            go_on(scenario, rng.uniform(0.2, 3))
            _send_late(held, counts)
        place.proxy.forget()
        _send_late(held, counts)
        progress(scenario)
        finish(scenario, f"proxy storm, transaction.version={version}", counts)
