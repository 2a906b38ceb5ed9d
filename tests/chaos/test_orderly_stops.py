"""SIGTERM at bad moments: the worker ends in order, with exit code 0 (T22)."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.chaos.fleet import PATIENCE
from tests.chaos.late_stop import STOPPING
from tests.chaos.stream import StreamScenario
from tests.chaos.telling import REVOKED
from tests.conftest import Unique
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


def test_a_worker_told_to_stop_while_its_group_waits_for_another_member_ends_in_order(
    kafka: str, home: Path, unique: Unique, seed: int
) -> None:
    """Found by a random run (seed 1795401961): Faust's fetcher took its end for a crash, exit code 1.

    The rebalance is held: a member that is stopped does not rejoin, and its session is long.
    """
    with StreamScenario(
        kafka, home, unique("term"), seed, kinds=["parquet"], pace="plain", SESSION_TIMEOUT=20
    ) as scenario:
        fleet = scenario.fleet
        fleet.app = "tests.chaos.telling"
        first = fleet.spawn("a")
        first.wait_log("partitions_loaded")
        second = fleet.spawn("b")
        second.wait_log("partitions_loaded")
        scenario.feeder.send(300)
        scenario.group.wait_past(scenario.ends(), PATIENCE)
        second.signal(signal.SIGSTOP)
        second.wait_stopped()
        before = first.log.read_text().count(REVOKED)
        fleet.spawn("c")
        wait_until(lambda: first.log.read_text().count(REVOKED) > before, PATIENCE, "the rebalance to begin")
        first.signal(signal.SIGTERM)
        assert first.wait() == 0, first.report()
        second.kill()
        scenario.feeder.send(300)
        scenario.drain()
        scenario.assert_exact()


def test_a_rebalance_that_begins_while_a_worker_stops_does_not_keep_it(
    kafka: str, home: Path, unique: Unique, seed: int
) -> None:
    """Found by a random run (seed 636318587): Faust closed the consumer in the wrong loop, and the stop hung, code 75.

    The rebalance is held: a member that is stopped does not rejoin, and its session is longer than the stop's bound.
    """
    with StreamScenario(
        kafka, home, unique("late"), seed, kinds=["parquet"], SESSION_TIMEOUT=60, REBALANCE_TIMEOUT=70
    ) as scenario:
        fleet = scenario.fleet
        second = fleet.spawn("b")
        second.wait_log("partitions_loaded")
        fleet.app = "tests.chaos.late_stop"
        first = fleet.spawn("a")
        first.wait_log("partitions_loaded")
        second.signal(signal.SIGSTOP)
        second.wait_stopped()
        first.signal(signal.SIGTERM)
        first.wait_log(STOPPING)
        fleet.app = "tests.chaos.stream_app"
        fleet.spawn("c")
        assert first.wait() == 0, first.report()
        assert "worker_failed" not in first.log.read_text()


def test_a_worker_told_to_stop_while_it_opens_its_sinks_ends_in_order(
    kafka: str, clickhouse: ClickHouseServer, home: Path, unique: Unique, seed: int
) -> None:
    """Found by a random run (seed 5): the stop closed the sinks, the start went on, "the sink is not open", code 70."""
    with StreamScenario(kafka, home, unique("open"), seed, clickhouse) as scenario:
        scenario.fleet.app = "tests.chaos.late_open"
        worker = scenario.fleet.spawn("a")
        assert worker.wait() == 0, worker.report()
        assert "worker_failed" not in worker.log.read_text()
