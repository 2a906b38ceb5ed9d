"""SIGSTOP at a failpoint past session and transaction timeout, SIGCONT once the successor went on (T7, T17)."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.chaos.failpoints import FULL
from tests.chaos.fleet import PATIENCE, SESSION, TRANSACTION
from tests.chaos.proof import record
from tests.chaos.stream import StreamScenario
from tests.conftest import Unique
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

ROUNDS = [
    ("cycle.planned", "txn.produced" + FULL),
    ("cycle.written", "txn.offsets_sent" + FULL),
    ("parquet.part.after_fsync", "clickhouse.insert.mid"),
]
"""Two workers are paused at the same time, at these; a third one takes everything over."""


def test_a_stream_is_exact_after_pauses_past_both_timeouts(
    kafka: str, clickhouse: ClickHouseServer, home: Path, unique: Unique, seed: int
) -> None:
    with StreamScenario(kafka, home, unique("stops"), seed, clickhouse) as scenario:
        fleet = scenario.fleet
        scenario.feeder.start()
        fleet.spawn("c")
        for points in ROUNDS:
            paused = [fleet.spawn(slot, f"{point}=stop1") for slot, point in zip("ab", points, strict=True)]
            for worker in paused:
                worker.wait_stopped()
            since = time.monotonic()
            # The successor has everything that was there when the last one stopped: it owns all partitions.
            scenario.group.wait_past(scenario.ends(), PATIENCE)
            wait_until(lambda s=since: time.monotonic() - s > SESSION + TRANSACTION, PATIENCE, "both timeouts")
            for worker in paused:
                assert worker.stopped, f"seed {seed}: {worker} was not paused any more"
                worker.signal(signal.SIGCONT)
            # They either end, non-zero, or come back into the group; the stream goes on in any case.
            scenario.group.wait_past(scenario.ends(), PATIENCE)
            for worker in paused:
                assert worker.code in (None, 70, 75), f"seed {seed}: {worker}: {worker.tail()}"
                worker.kill()
        scenario.feeder.finish()
        scenario.drain()
        assert set(fleet.hits()) == {point for points in ROUNDS for point in points}
        record(Path(__file__).stem, fleet, scenario.assert_exact())
