"""One broker under load: killed and restarted, paused, and with its disk full."""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from millstream.broker import EmbeddedBroker
from tests.chaos.stream import StreamScenario
from tests.conftest import Unique
from tests.faults.load import finish, go_on, keep, progress
from tests.support.namespaces import own_mounts
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.faults, pytest.mark.timeout(1200)]


def test_a_stream_is_exact_while_its_broker_dies_and_pauses(
    tmp_path: Path, home: Path, unique: Unique, seed: int
) -> None:
    """Five deaths and five pauses of 1 to 20 s, in an order that the seed gives."""
    with (
        EmbeddedBroker(tmp_path / "kafka", heap_mib=256) as broker,
        StreamScenario(broker.bootstrap_servers, home, unique("single"), seed) as scenario,
    ):
        fleet, counts = scenario.fleet, Counter[str]()
        scenario.feeder.start()
        progress(scenario)
        blows = ["kill"] * 5 + ["pause"] * 5
        fleet.random.shuffle(blows)
        for number, blow in enumerate(blows):
            go_on(scenario, fleet.random.uniform(0.5, 3))
            assert broker.pid is not None
            if blow == "kill":
                broker.kill()
                go_on(scenario, fleet.random.choice((0, fleet.random.uniform(1, 12))))
                broker.start()
            else:
                os.kill(broker.pid, signal.SIGSTOP)
                # From one second to twenty, evenly, whatever the order.
                go_on(scenario, 1 + 19 * fleet.random.random() if number else 20)
                os.kill(broker.pid, signal.SIGCONT)
            counts[blow] += 1
            progress(scenario)
        finish(scenario, "one broker killed and paused", counts)


def test_a_stream_is_exact_after_the_brokers_disk_was_full(
    tmp_path: Path, home: Path, unique: Unique, seed: int
) -> None:
    """The log directory is a file system of 64 MiB of its own, filled until Kafka gives its log directory up."""
    rounds = 2
    with own_mounts() as mounts:
        mounts.tmpfs(tmp_path / "kafka" / "log", "64m")
        properties = {
            "log.segment.bytes": str(1 << 20),  # written to, and made anew, often
            "log.index.size.max.bytes": str(64 << 10),
            "log.preallocate": "false",
        }
        with (
            EmbeddedBroker(tmp_path / "kafka", heap_mib=256, properties=properties) as broker,
            StreamScenario(broker.bootstrap_servers, home, unique("full"), seed, rate=400) as scenario,
        ):
            scenario.feeder.start()
            progress(scenario)
            filler = tmp_path / "kafka" / "log" / "filler"
            for _ in range(rounds):
                _fill(filler)

                def gave_up() -> bool:
                    keep(scenario)
                    _fill(filler)  # what Kafka itself set free
                    return broker.pid is None

                wait_until(gave_up, 240, "Kafka to end for want of room", every=0.5)
                assert "No space left on device" in broker.log_path.read_text()
                go_on(scenario, scenario.fleet.random.uniform(1, 8))
                filler.unlink()
                broker.kill()  # lets the directory go
                broker.start()
                progress(scenario)
            finish(scenario, "the broker's disk full", {"times": rounds})


def _fill(path: Path) -> None:
    """Write until there is no room for a single block."""
    with path.open("ab", buffering=0) as f:
        try:
            while f.write(bytes(4096)):
                pass
        except OSError as exc:
            if exc.errno != errno.ENOSPC:
                raise
