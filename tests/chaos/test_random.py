"""A short round of `make chaos`: streams and jobs side by side on a broker of their own, which is killed too."""

from __future__ import annotations

from pathlib import Path

import pytest

from millstream.broker import EmbeddedBroker
from tests.chaos.run import Run
from tests.support.clickhouse_server import ClickHouseServer

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

SECONDS = 30.0
WANTED = ("failpoint deaths", "kills")
"""Waited for, on a busy machine: there the workers may take as long as this to start."""


def test_a_round_of_random_deaths_pauses_and_broker_kills_is_exact(
    clickhouse: ClickHouseServer, home: Path, tmp_path: Path, seed: int
) -> None:
    home.mkdir()
    with EmbeddedBroker(tmp_path / "kafka") as broker:
        run = Run(home, seed, broker, clickhouse)
        try:
            run.round(0, SECONDS, WANTED)
        finally:
            run.close()
    assert run.findings == []
    counts = run.tally.counts
    assert counts["applications exact"] == counts["applications"] > 0, counts
    assert all(counts[name] for name in WANTED), counts
