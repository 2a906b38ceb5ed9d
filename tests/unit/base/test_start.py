"""Programs start quickly: what is dear to import is not imported on the way."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOOK = (
    "import sys; found = sorted({'pandas', 'chdb', 'asyncpg', 'rocksdict'} & set(sys.modules)); assert not found, found"
)


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["streams.cli", "sources.feeders", "streams"])
def test_importing_a_program_imports_nothing_dear(module: str) -> None:
    run(f"import {module}; {LOOK}")


def test_a_worker_imports_pandas_where_it_starts_and_not_in_its_first_chunk() -> None:
    run("from millstream.start import load_pandas; load_pandas(); import sys; assert 'pandas' in sys.modules")


NANOSECONDS = """
from datetime import UTC, datetime, timedelta, time
from millstream.start import without_pandas; without_pandas()
import pyarrow as pa
from sinks.clickhouse.encode import constant
from sinks.postgres.append import _python
at = pa.scalar(1_795_443_336_123_456_789, pa.timestamp("ns", "UTC"))
assert constant(at, 3).cast(at.type).cast(pa.int64()).to_pylist() == [at.value] * 3
def python(value, kind):
    return _python(pa.chunked_array([pa.array([value, None], pa.int64()).cast(kind)]))
assert python(at.value, at.type) == [datetime.fromtimestamp(1_795_443_336, UTC) + timedelta(microseconds=123_456), None]
assert python(1_999, pa.duration("ns")) == [timedelta(microseconds=1), None]
assert python(1_999, pa.time64("ns")) == [time(microsecond=1), None]
"""


def test_times_in_nanoseconds_need_no_pandas_which_the_image_has_not() -> None:
    run(NANOSECONDS)


def test_pyarrow_is_told_once_that_there_is_no_pandas_and_pandas_itself_stays() -> None:
    run(
        "from millstream.start import without_pandas; without_pandas()\n"
        "import sys, pyarrow as pa; pa.array(['a', None]); assert 'pandas' not in sys.modules\n"
        "import pandas"
    )
