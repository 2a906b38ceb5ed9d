"""kill -9 at every failpoint that a stream passes, in one continuous run of two workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import failpoints
from tests.chaos.fleet import PATIENCE
from tests.chaos.proof import record
from tests.chaos.stream import StreamScenario
from tests.conftest import Unique
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def test_a_stream_is_exact_after_kill_9_at_every_failpoint(
    kafka: str, clickhouse: ClickHouseServer, home: Path, unique: Unique, seed: int
) -> None:
    """A worker dies at the first failpoint it passes that has not killed yet, and comes back armed with the rest."""
    with StreamScenario(kafka, home, unique("kills"), seed, clickhouse, pace="quick") as scenario:
        fleet = scenario.fleet
        every = failpoints.of_stream()
        scenario.feeder.start()
        wait_until(lambda: fleet.walk(every), PATIENCE + 20 * len(every), "a death at every failpoint", every=0.1)
        scenario.feeder.finish()
        scenario.drain()
        assert set(fleet.hits()) == set(every)
        record(Path(__file__).stem, fleet, scenario.assert_exact())
        assert set(fleet.terminate().values()) == {0}  # T22
