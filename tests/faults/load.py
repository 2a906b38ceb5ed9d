"""Workers kept at work while something below them is attacked."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaException

from tests.chaos.check import Verdict
from tests.chaos.fleet import PATIENCE
from tests.chaos.group import Group
from tests.chaos.proof import append
from tests.chaos.stream import StreamScenario
from tests.support.waiting import wait_until

CLIENT_PATIENCE = 15.0
"""Seconds without an answer until the test's own clients are made anew."""
ENDS = {70, 75}
"""Exit codes of a worker that could not go on: what it says in the documentation, and nothing else."""


def keep(scenario: StreamScenario, slots: str = "ab") -> None:
    """One look: whoever ended with a documented code is started again; any other end is a finding."""
    fleet = scenario.fleet
    for slot in slots:
        worker = fleet.workers.get(slot)
        if worker is not None and worker.code is not None:
            assert worker.code in ENDS, f"seed {fleet.seed}: {worker} ended with {worker.code}: {worker.tail()}"
        if worker is None or worker.code is not None:
            fleet.spawn(slot)


def go_on(scenario: StreamScenario, seconds: float, slots: str = "ab") -> None:
    """Load for so long."""
    end = time.monotonic() + seconds

    def look() -> bool:
        keep(scenario, slots)
        return time.monotonic() > end

    wait_until(look, seconds + 30, "the end of this phase", every=0.1)


def progress(scenario: StreamScenario, slots: str = "ab", timeout: float = 2 * PATIENCE) -> None:
    """Until everything that stands in the input now is committed."""
    ends: dict[tuple[str, int], int] = {}
    answered = time.monotonic()

    def look() -> bool:
        nonlocal answered
        keep(scenario, slots)
        try:
            if not ends:
                ends.update(scenario.ends())
            found = scenario.group.committed(scenario.source)
        except (KafkaException, TimeoutError):
            found = None
        if found is not None:
            answered = time.monotonic()
        elif time.monotonic() - answered > CLIENT_PATIENCE:
            _ask_anew(scenario)
            answered = time.monotonic()
        return found is not None and all(found[tp].offset >= offset for tp, offset in ends.items())

    try:
        wait_until(look, timeout, "all input of a while ago committed", every=0.3)
    except AssertionError as exc:
        raise AssertionError(f"{exc}; seed {scenario.fleet.seed}, {scenario.fleet.failures()}") from exc


def _ask_anew(scenario: StreamScenario) -> None:
    """New clients: librdkafka may hold on to a coordinator, a leader or a leader's epoch that is gone."""
    scenario.group.close()
    scenario.group = Group(scenario.kafka, scenario.name)


def finish(scenario: StreamScenario, attack: str, counts: Mapping[str, Any]) -> dict[str, Verdict]:
    """No more load and no more faults: drained, exact, every worker ends in order. CHAOS_RECORD=1 keeps the result."""
    fleet = scenario.fleet
    scenario.feeder.finish()
    for slot in fleet.workers:
        keep(scenario, slot)
    _ask_anew(scenario)
    scenario.drain()
    found = scenario.assert_exact()
    codes = {str(code): n for code, n in fleet.codes.items()}
    ends = fleet.terminate()
    assert set(ends.values()) == {0}, f"seed {fleet.seed}: {ends}"  # T22
    record(attack, scenario, found, counts, codes)
    return found


def record(
    attack: str,
    scenario: StreamScenario,
    found: Mapping[str, Verdict],
    counts: Mapping[str, Any],
    codes: Mapping[str, int] | None = None,
    result: str = "exact",
) -> None:
    """A line in docs/proof/faults.jsonl, if CHAOS_RECORD is set."""
    print("faults:", attack, dict(counts), "ends", codes, flush=True)
    if os.environ.get("CHAOS_RECORD"):
        fleet = scenario.fleet
        append(
            "faults.jsonl",
            attack=attack,
            seed=fleet.seed,
            lives=fleet.lives,
            counts=counts,
            codes=codes or {},
            verdict=found,
            result=result,
        )
