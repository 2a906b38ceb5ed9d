"""kill -9 at every failpoint of the Postgres sink and of the projection, under load (T2, T53, T56, RO-96)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import failpoints
from tests.chaos.fleet import PATIENCE
from tests.chaos.projection import ProjectionScenario
from tests.chaos.proof import record
from tests.conftest import Unique
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


def test_every_event_has_its_effect_once_after_kill_9_at_every_failpoint_of_the_sink(
    kafka: str, postgres_server: str, home: Path, unique: Unique, seed: int
) -> None:
    every = sorted(name for name in failpoints.declared() if name.startswith("postgres."))
    assert len(every) >= 6
    with ProjectionScenario(kafka, home, unique("projection"), seed, postgres_server, pace="quick") as scenario:
        fleet = scenario.fleet

        def step() -> bool:
            scenario.tick()
            return fleet.walk(every)

        wait_until(step, PATIENCE + 20 * len(every), "a death at every failpoint", every=0.1)
        scenario.finish_input()
        scenario.drain()
        assert set(fleet.hits()) == set(every)
        record(Path(__file__).stem, fleet, scenario.assert_exact())
        assert set(fleet.terminate().values()) == {0}  # T22
