"""kill -9 at every failpoint that a stream passes, in one continuous run of two workers."""

from __future__ import annotations

import signal
from collections import deque
from pathlib import Path

import pytest

from tests.chaos import failpoints
from tests.chaos.fleet import PATIENCE, QUICK
from tests.chaos.proof import record
from tests.chaos.scenario import StreamScenario
from tests.conftest import Unique
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def test_a_stream_is_exact_after_kill_9_at_every_failpoint(
    kafka: str, clickhouse: ClickHouseServer, home: Path, unique: Unique, seed: int
) -> None:
    """Each worker dies at the first pass of its failpoint, and its next life is armed with the next one."""
    with StreamScenario(kafka, home, unique("kills"), seed, clickhouse, **QUICK) as scenario:
        fleet = scenario.fleet
        every = failpoints.of_stream()
        fleet.random.shuffle(every)
        todo = deque(every)

        def respawn() -> bool:
            for slot in "ab":
                worker = fleet.workers.get(slot)
                if worker is None or worker.code is not None:
                    if worker is not None and worker.code != -signal.SIGKILL:
                        # It ended by itself (a commit that could not be decided): its failpoint is still to come.
                        todo.append(worker.failpoints.partition("=")[0])
                    armed = f"{todo.popleft()}=kill" if todo else ""
                    fleet.spawn(slot, armed, wipe=fleet.random.random() < 0.25)
            return not todo and set(fleet.hits()) == set(every)

        scenario.feeder.start()
        wait_until(respawn, PATIENCE + 20 * len(every), "a death at every failpoint", every=0.1)
        scenario.feeder.stop()
        scenario.drain()
        assert set(fleet.hits()) == set(every)
        record(Path(__file__).stem, fleet, scenario.assert_exact())
        assert set(fleet.terminate().values()) == {0}  # T22
