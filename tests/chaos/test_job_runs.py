"""An instance is fed anew while the coordinator is behind: its facts still tell of a run that a later one voided."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.chaos.fleet import PATIENCE
from tests.chaos.job import JobScenario
from tests.conftest import Unique
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.kafka import create_topic
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


def test_a_run_voided_before_the_coordinator_hears_of_it_does_not_end_workers(
    kafka: str, admin: AdminClient, clickhouse: ClickHouseServer, home: Path, unique: Unique, seed: int
) -> None:
    """Found by a random run (CHAOS_SEED 1795400886): the later run's file stood where the voided one's was expected.

    That stopped the worker, and each successor at the same chunk of facts.
    """
    with JobScenario(kafka, home, unique("runs"), seed, clickhouse) as job:
        create_topic(admin, f"{job.name}.rdb.batches", 4)
        archive = job.fleet.spawn("a", STREAMS="streams.archive")  # the coordinator sleeps
        jobs = job.new_batch()
        assert job.feed(jobs).wait() == 0
        job.rewrite(jobs[0])
        assert job.feed(jobs).wait() == 0

        def archived() -> bool:
            # Of the instance that is fed twice: opened for the second time, and finalized after that.
            lines = [
                line for line in archive.log.read_text(errors="replace").splitlines() if " instance=10.0.0.1:" in line
            ]
            opened = [n for n, line in enumerate(lines) if "=parquet_writer_open " in line]
            return len(opened) == 2 and any("=parquet_instance_finalized " in line for line in lines[opened[1] :])

        wait_until(archived, PATIENCE, "both runs to be archived", every=0.2)
        archive.kill()
        worker = job.fleet.spawn("b")

        def published() -> bool:
            assert worker.code is None, f"{worker} ended with {worker.code}: {worker.tail(8)}"
            return job.published()

        wait_until(published, PATIENCE, "the batch to be published", every=0.5)
        job.assert_exact()
