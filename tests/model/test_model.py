"""The protocol, simulated. `make model STEPS=1000000` runs it longer; what that gave stands in docs/proof.md."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.broken import BROKEN, without_rule
from tests.model.machine import Protocol, Step, replay, shrink
from tests.model.worker import simulated

PROFILE = settings(
    max_examples=70, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True,
    database=None, print_blob=False,
)  # fmt: skip
SEARCH = settings(PROFILE, max_examples=6000, phases=[Phase.generate], report_multiple_bugs=False)
"""For the controls: the first failure will do, and is cut down by replaying it. A few hundred examples find one as a
rule; which are tried depends on the modules that happen to be loaded, so there is room for many more."""
SHORT = 12
"""Steps of a counterexample at most."""


@pytest.fixture(scope="module", autouse=True)
def _ground() -> Iterator[None]:
    with simulated():
        yield


def test_the_protocol_is_exact_whatever_happens_in_whatever_order() -> None:
    run_state_machine_as_test(Protocol, settings=PROFILE)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", BROKEN)
def test_a_protocol_without_one_of_its_rules_is_caught(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed: list[list[Step]] = []

    class Watched(BROKEN[name]):  # type: ignore[name-defined,misc]
        def close(self) -> None:
            super().close()
            failed.append(self.steps)

    with without_rule(BROKEN[name]):
        with pytest.raises(AssertionError, match=r"doubled|missing|wrong|stale"):
            run_state_machine_as_test(Watched, settings=SEARCH)
        steps, found = shrink(BROKEN[name], failed[-1])
    with capsys.disabled():
        print(f"\n  {name}: " + "; ".join(step.text for step in steps) + f" -> {found}")
    assert len(steps) <= SHORT
    assert replay(Protocol, steps)[1] == "", "with the rule, the same steps do no harm"
