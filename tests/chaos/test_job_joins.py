"""New instances appear while a worker is in the middle of taking over its partitions (T12)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.fleet import PATIENCE
from tests.chaos.job import JobScenario
from tests.conftest import Unique
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


def test_topics_that_appear_between_a_load_and_its_seek_do_not_end_the_worker(
    kafka: str, clickhouse: ClickHouseServer, home: Path, unique: Unique, seed: int
) -> None:
    """The assignment is gone when the worker seeks: it waits for the next one (rule 11).

    Found by a random run (seed 1795398871): aiokafka's AssertionError ended the worker through Faust, exit code 1.
    """
    modules = "streams.archive,streams.batches,tests.chaos.late_seek"
    with JobScenario(kafka, home, unique("joins"), seed, clickhouse, STREAMS=modules) as job:
        worker = job.fleet.spawn("a")
        worker.wait_log("partitions_loaded")
        assert job.feed(job.new_batch()).wait() == 0

        def published() -> bool:
            assert worker.code is None, f"{worker} ended with {worker.code}: {worker.tail()}"
            return job.published()

        wait_until(published, PATIENCE, "the batch to be published", every=0.5)
        job.assert_exact()
