"""The job: workers paused past session and transaction timeout, and continued only after the batch was published."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.chaos.fleet import PATIENCE, SESSION, TRANSACTION, Worker
from tests.chaos.job import JobScenario
from tests.chaos.proof import record
from tests.conftest import Unique
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

KEYS = {"10.0.0.1:6379": 300, "10.0.0.2:6379": 300, "10.0.0.3:6379": 300}
"""Every one has rows: whichever instance a worker gets, it comes to write a part."""


def _continue_late(job: JobScenario, paused: list[Worker], members: int) -> None:
    """Let the successor publish, then wake the paused ones: they come back into the group, or end."""
    since = time.monotonic()
    wait_until(job.published, PATIENCE, "the batch to be published by the successor", every=0.5)
    wait_until(lambda: time.monotonic() - since > SESSION + TRANSACTION, PATIENCE, "both timeouts")
    for worker in paused:
        assert worker.stopped, f"seed {job.fleet.seed}: {worker} was not paused any more"
        worker.signal(signal.SIGCONT)

    def settled() -> bool:
        return job.group.members() == members - sum(w.code is not None for w in paused)

    wait_until(settled, PATIENCE, "the paused workers", every=0.5)
    assert {w.code for w in paused} <= {None, 70, 75}, [w.tail() for w in paused]


def test_workers_that_slept_through_the_publication_change_nothing(
    kafka: str, clickhouse: ClickHouseServer, home: Path, unique: Unique, seed: int
) -> None:  # T7
    with JobScenario(kafka, home, unique("late"), seed, clickhouse, KEYS) as job:
        fleet = job.fleet
        coordinator = fleet.spawn("a", "parquet.publish.before_rename=stop1")
        assert job.feed(job.new_batch()).wait() == 0
        coordinator.wait_stopped()
        fleet.spawn("b")
        _continue_late(job, [coordinator], 2)
        coordinator.kill()

        writers = [fleet.spawn("a", "parquet.part.after_fsync=stop1"), fleet.spawn("c", "clickhouse.insert.mid=stop1")]
        # One instance for each of the three: they are all in the group before anything is fed.
        wait_until(lambda: job.group.members() == 3, PATIENCE, "three workers", every=0.5)
        assert job.feed(job.new_batch()).wait() == 0
        for worker in writers:
            worker.wait_stopped()
        _continue_late(job, writers, 3)

        assert job.feed(job.new_batch()).wait() == 0
        job.drain()
        assert len(fleet.hits()) == 3
        record(Path(__file__).stem, fleet, job.assert_exact())
