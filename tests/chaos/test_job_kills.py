"""The job (files -> feeders -> archive -> coordinator -> both sinks) under kill -9 at every failpoint."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.chaos import failpoints
from tests.chaos.fleet import PATIENCE
from tests.chaos.job import JobScenario
from tests.chaos.proof import record
from tests.conftest import Unique
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def test_batches_are_published_exactly_after_kill_9_at_every_failpoint(
    kafka: str, clickhouse: ClickHouseServer, home: Path, unique: Unique, seed: int
) -> None:
    """Batch after batch is fed, the feeder dying too, until every failpoint has killed a process (hole e)."""
    with JobScenario(kafka, home, unique("job"), seed, clickhouse, pace="quick") as job:
        fleet = job.fleet
        workers, feeders = failpoints.of_job(), failpoints.of_feeder()
        workers.remove("clickhouse.schema.created")
        assert fleet.spawn("a", "clickhouse.schema.created=kill").wait() == -signal.SIGKILL

        def arm_feeder() -> str:
            left = [name for name in feeders if name not in fleet.hits()]
            return f"{left[0]}=kill" if left else "feed.after_commit=kill:0.3"

        job.arm_feeder = arm_feeder

        def all_hit() -> bool:
            job.tick()
            return fleet.walk(workers) and fleet.hits().keys() >= set(feeders)

        wait_until(all_hit, PATIENCE + 20 * len(workers), "a death at every failpoint", every=0.1)
        job.finish_input()
        job.drain()
        assert set(fleet.hits()) == set(failpoints.of_job()) | set(feeders)
        record(Path(__file__).stem, fleet, job.assert_exact())
        assert set(fleet.terminate().values()) == {0}  # T22
