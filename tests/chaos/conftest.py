"""What the attacks share."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clickhouse_server import ClickHouseServer


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseServer]:
    """Our server over chdb, which several workers share."""
    with ClickHouseServer(tmp_path_factory.mktemp("chaos-clickhouse")) as running:
        yield running


@pytest.fixture
def seed() -> int:
    """A new one each time, printed by the fleet; CHAOS_SEED replays one."""
    return int(os.environ.get("CHAOS_SEED") or time.time_ns() % 10**9)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Logs, tables and files of one attack."""
    return tmp_path / "chaos"
