"""A worker that is started while the broker goes away."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.stream import StreamScenario
from tests.conftest import Unique
from tests.faults.network.site import site

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


def test_a_worker_whose_consumer_cannot_connect_ends_with_70_and_says_why(
    tmp_path: Path, home: Path, unique: Unique, seed: int
) -> None:
    """Found by a random run (CHAOS_SEED 1795399577): Faust's traceback and exit code 1."""
    with (
        site(tmp_path / "kafka") as place,
        StreamScenario(place.direct, home, unique("start"), seed, BOOTSTRAP_SERVERS=place.proxy.address) as scenario,
    ):
        place.proxy.reject(lambda request: request.client.startswith("faust"))  # librdkafka's clients are let through
        worker = scenario.fleet.spawn("a")
        assert worker.wait() == 70
        text = worker.log.read_text()
        assert "worker_failed" in text
        assert "no Kafka broker answers at" in text
        assert "Traceback" not in text, worker.tail()
        place.proxy.reject(lambda _request: False)
        scenario.feeder.send(100)
        scenario.drain()
        scenario.assert_exact()
