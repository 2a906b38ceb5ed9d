"""Known-bad engines under attacks that the good one stands (the other tests here): the checker catches each of them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.check import bad
from tests.chaos.controls import READ
from tests.chaos.failpoints import FULL
from tests.chaos.fleet import PATIENCE
from tests.chaos.proof import record
from tests.chaos.stream import StreamScenario
from tests.conftest import Unique
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

ATTEMPTS = 3


def _judge(scenario: StreamScenario, control: str, *caught: str) -> None:
    """Exact without a control; with one, at least the sinks named in `caught` are not."""
    found = scenario.verdict()
    faults = {name: bad({name: v}) for name, v in found.items()}
    if control:
        assert all(faults[name] for name in caught), f"seed {scenario.fleet.seed}: control {control} passed: {found}"
    else:
        assert not any(faults.values()), f"seed {scenario.fleet.seed}: {found}"
    record(f"control {control}" if control else "commit while the successor loads", scenario.fleet, found)


def test_without_a_plan_on_record_a_killed_chunk_is_cut_anew_and_doubled(
    kafka: str, home: Path, unique: Unique, seed: int
) -> None:
    with StreamScenario(kafka, home, unique("plan"), seed, partitions=1, control="no_plan") as scenario:
        scenario.feeder.send(300)
        assert scenario.fleet.spawn("a", "cycle.written=kill").wait() == -signal.SIGKILL
        scenario.feeder.send(300)
        scenario.fleet.spawn("a")
        scenario.drain()
        _judge(scenario, "no_plan", "parquet")


def test_without_the_generation_a_paused_worker_commits_over_its_successor(
    kafka: str, home: Path, unique: Unique, seed: int
) -> None:  # T7
    with StreamScenario(kafka, home, unique("fence"), seed, partitions=1, control="no_generation") as scenario:
        scenario.feeder.send(300)
        paused = scenario.fleet.spawn("a", "cycle.written=stop1")
        paused.wait_stopped()
        scenario.fleet.spawn("b")
        scenario.group.wait_past(scenario.ends(), PATIENCE)
        scenario.feeder.send(300)
        scenario.group.wait_past(scenario.ends(), PATIENCE)
        paused.signal(signal.SIGCONT)
        # Back in the group, or ended: its late commit is over in either case.
        wait_until(lambda: paused.code is not None or scenario.group.members() == 2, PATIENCE, "the paused worker")
        scenario.feeder.send(300)
        scenario.drain()
        _judge(scenario, "no_generation", "topic")


@pytest.mark.parametrize("control", ["", "unstable_offsets", "committed_ends_first"])
def test_a_transaction_that_ends_while_its_successor_loads_is_seen_by_it(
    kafka: str, home: Path, unique: Unique, seed: int, control: str
) -> None:
    """Rule 4: paused with its offsets sent; it goes on and commits after its successor began to load."""
    for attempt in range(ATTEMPTS):
        with StreamScenario(
            kafka, home / str(attempt), unique("load"), seed, partitions=1, control=control, TRANSACTION_TIMEOUT=60
        ) as scenario:
            if _loads_during_a_commit(scenario, control) <= 1:
                _judge(scenario, control, "table")
                return
    pytest.fail(f"in {ATTEMPTS} attempts the successor loaded more than once")


def _loads_during_a_commit(scenario: StreamScenario, control: str) -> int:
    """How often the successor loaded; not counted without a control.

    The paused worker may ask to join the group again before it dies. Then its successor loads once more, when all is
    committed, and that heals what the controls break.
    """
    scenario.feeder.send(300)
    first = scenario.fleet.spawn("a")
    scenario.group.wait_past(scenario.ends(), PATIENCE)
    first.kill()
    scenario.fleet.env["CHAOS_MUTE"] = point = f"txn.offsets_sent{FULL}"
    paused = scenario.fleet.spawn("a", f"{point}=stop1,txn.committed{FULL}=kill")
    del scenario.fleet.env["CHAOS_MUTE"]
    scenario.feeder.send(300)
    paused.wait_stopped()
    successor = scenario.fleet.spawn("b")
    successor.wait_log(READ if control else "partitions_assigned")
    paused.signal(signal.SIGCONT)
    assert paused.wait() == -signal.SIGKILL  # it has committed
    scenario.feeder.send(300)
    scenario.drain()
    return successor.log.read_text(errors="replace").count(READ)


def test_a_file_written_before_its_offset_is_saved_is_doubled(
    kafka: str, home: Path, unique: Unique, seed: int
) -> None:
    with StreamScenario(kafka, home, unique("loop"), seed, partitions=1, kinds=["parquet"]) as scenario:
        name = f"{scenario.name}-in"
        loop: Any = ("tests.chaos.plain_loop", (kafka, name, scenario.name, str(scenario.parquet)))
        scenario.feeder.send(300)
        assert scenario.fleet.run("a", *loop, "control.written=kill").wait() == -signal.SIGKILL
        scenario.feeder.send(300)
        again = scenario.fleet.run("a", *loop)
        scenario.group.wait_past(scenario.ends(), PATIENCE)
        again.kill()
        found = scenario.verdict()
        assert found["parquet"]["doubled"] > 0
        assert found["parquet"]["missing"] == 0
        record("control plain loop", scenario.fleet, found)
