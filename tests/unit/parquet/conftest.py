"""A sink in a directory of its own, and no failpoint left armed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from millstream import failpoints
from sinks.parquet import ParquetBatches, ParquetConfig


@pytest.fixture
def sink(tmp_path: Path) -> ParquetBatches:
    return ParquetBatches(ParquetConfig(tmp_path))


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    failpoints.arm("")
