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


def test_pyarrow_is_told_once_that_there_is_no_pandas_and_pandas_itself_stays() -> None:
    run(
        "from millstream.start import without_pandas; without_pandas()\n"
        "import sys, pyarrow as pa; pa.array(['a', None]); assert 'pandas' not in sys.modules\n"
        "import pandas"
    )
