"""The job (files -> feeders -> archive -> coordinator -> both sinks) under kill -9 at every failpoint."""

from __future__ import annotations

import signal
from collections import deque
from pathlib import Path

import pytest

from tests.chaos import failpoints
from tests.chaos.fleet import PATIENCE, QUICK, Worker
from tests.chaos.job import JobScenario
from tests.chaos.proof import record
from tests.conftest import Unique
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def test_batches_are_published_exactly_after_kill_9_at_every_failpoint(
    kafka: str, clickhouse: ClickHouseServer, home: Path, unique: Unique, seed: int
) -> None:
    """Batch after batch is fed, the feeder dying too, until every failpoint has killed a process."""
    with JobScenario(kafka, home, unique("job"), seed, clickhouse, **QUICK) as job:
        fleet = job.fleet
        workers, feeders = failpoints.of_job(), failpoints.of_feeder()
        workers.remove("clickhouse.schema.created")
        assert fleet.spawn("a", "clickhouse.schema.created=kill").wait() == -signal.SIGKILL
        to_feed = deque(feeders)
        feeder: Worker | None = None
        jobs: list[dict[str, object]] = []

        def feeders_go_on() -> bool:
            nonlocal feeder, jobs
            if feeder is not None and feeder.code == 0 and job.pending() > 1:
                return not to_feed  # more would only keep the machine busy
            if feeder is None or feeder.code == 0:
                jobs = job.new_batch()
                feeder = job.feed(jobs, f"{to_feed.popleft()}=kill" if to_feed else "feed.after_commit=kill:0.3")
            elif feeder.code == -signal.SIGKILL:
                # Every other time not to be resumed: a new run voids what was fed (hole e).
                jobs[0]["new_run"] = len(job.batches) % 2 == 0
                feeder = job.feed(jobs)
            else:
                assert feeder.code is None, f"seed {seed}: {feeder} ended with {feeder.code}: {feeder.tail()}"
            return not to_feed

        def all_hit() -> bool:
            fed, hit = feeders_go_on(), fleet.walk(workers)
            return fed and hit

        wait_until(all_hit, PATIENCE + 20 * len(workers), "a death at every failpoint", every=0.1)
        assert feeder is not None
        if feeder.wait() != 0:
            assert job.feed(jobs).wait() == 0
        job.drain()
        assert set(fleet.hits()) == set(failpoints.of_job()) | set(feeders)
        record(Path(__file__).stem, fleet, job.assert_exact())
        assert set(fleet.terminate().values()) == {0}  # T22
