"""The broker is gone when a worker starts: the worker says so and ends, and its successor goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from millstream.broker import EmbeddedBroker
from tests.chaos.fleet import Worker
from tests.chaos.storm import FAILED
from tests.chaos.stream import StreamScenario
from tests.conftest import Unique

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


def _said_plainly(worker: Worker, kafka: str) -> None:
    assert worker.wait() == FAILED, worker.report()
    text = worker.log.read_text()
    assert "worker_failed" in text
    assert kafka in worker.failure(), worker.report()
    assert "Task exception was never retrieved" not in text
    assert "[^Worker]: Error" not in text  # Faust's own report of a crash


def test_a_worker_that_is_started_without_a_broker_says_so_and_its_successor_goes_on(
    home: Path, tmp_path: Path, unique: Unique, seed: int
) -> None:
    """Found by a random run (seed 1795399577): Faust's traceback and exit code 1."""
    with EmbeddedBroker(tmp_path / "kafka") as broker:
        kafka, name = broker.bootstrap_servers, unique("lost")
        with StreamScenario(kafka, home, name, seed, kinds=["parquet"], REQUEST_TIMEOUT=3) as scenario:
            scenario.feeder.send(300)
            scenario.fleet.env["CHAOS_BROKER_PID"] = str(broker.pid)
            _said_plainly(scenario.fleet.spawn("a"), kafka)  # it dies while the worker starts
            del scenario.fleet.env["CHAOS_BROKER_PID"]
            broker.kill()
            _said_plainly(scenario.fleet.spawn("a"), kafka)  # it was dead before
            broker.start()
            scenario.fleet.spawn("a")
            scenario.drain()
            scenario.assert_exact()
