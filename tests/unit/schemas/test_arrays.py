"""Python values into Arrow arrays, as `pa.array` would make them, and without what it brings along."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codecs import array_of

TIME = pa.timestamp("us", "UTC")
kinds = st.sampled_from(
    [
        (pa.string(), st.text()),
        (pa.binary(), st.binary()),
        (pa.int64(), st.integers(-(1 << 63), (1 << 63) - 1)),
        (TIME, st.integers(-(1 << 53), 1 << 53)),
        (TIME, st.datetimes(timezones=st.just(UTC))),
        (pa.bool_(), st.booleans()),
        (pa.float64(), st.floats(allow_nan=False)),
        (pa.list_(pa.string()), st.lists(st.text(max_size=3), max_size=3)),
    ]
)


@given(kinds.flatmap(lambda kind: st.tuples(st.just(kind[0]), st.lists(kind[1] | st.none(), max_size=20))))
def test_an_array_is_the_one_that_arrow_makes(found: tuple[pa.DataType, list[object]]) -> None:
    kind, values = found
    made = array_of(values, kind)
    made.validate(full=True)
    assert made.equals(pa.array(values, kind))
    assert made.null_count == values.count(None)


@pytest.mark.parametrize(
    ("value", "kind"), [(1 << 63, pa.int64()), ("x", pa.int64()), (1, pa.string()), ("\ud800", pa.string())]
)
def test_a_misfit_is_refused_as_arrow_refuses_it(value: object, kind: pa.DataType) -> None:
    for make in (lambda: array_of([value], kind), lambda: pa.array([value], kind)):
        with pytest.raises((ValueError, TypeError, OverflowError, pa.ArrowException)):
            make()


def test_a_chunk_is_decoded_and_read_by_the_sink_without_pandas() -> None:
    """`pa.array` imports it: 0.9 CPU-seconds of a worker's first chunk, and 60 MiB that stay."""
    code = (
        "import sys; from tests.support.projection import chunk_of, record; from tests.unit.events.events import event;"
        "from sinks.postgres.projection import _read; e = event('video.deleted', 2);"
        "found = chunk_of([record(event('video.created', 1), 0), record(e, 1), record(e, 2, schema_version='v7')]);"
        "assert [len(rows) for rows in _read(found.records)] == [2, 1]; sys.exit('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
