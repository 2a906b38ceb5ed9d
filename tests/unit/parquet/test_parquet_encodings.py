"""How the columns of a stream's files are encoded: by what their values are like."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.chunk import Chunk, ChunkId
from sinks.parquet import ParquetConfig, ParquetStream
from sinks.parquet.encode import encodings

ROWS = 5000


def written(directory: Path, table: pa.Table) -> pq.ParquetFile:
    sink = ParquetStream(ParquetConfig(directory))
    receipt = sink._write(Chunk(ChunkId("t", "id", 1, 0, 0, table.num_rows), table))
    return pq.ParquetFile(receipt.details["path"])


def encodings_of(file: pq.ParquetFile) -> dict[str, set[str]]:
    group = file.metadata.row_group(0)
    columns = (group.column(i) for i in range(group.num_columns))
    return {c.path_in_schema: set(c.encodings) for c in columns}


def test_counters_are_written_as_differences_and_words_by_dictionary(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array(range(7, 7 + ROWS)),
            "small": pa.array(range(ROWS), pa.int32()),
            "word": pa.array([f"w{n % 300}" for n in range(ROWS)]),
            "text": pa.array([f"text {n}" for n in range(ROWS)]),
            "ratio": pa.array([n / 7 for n in range(ROWS)]),
            "at": pa.array([dt.datetime.fromtimestamp(n, dt.UTC) for n in range(ROWS)], pa.timestamp("ns", "UTC")),
            "_offset": pa.array(range(ROWS)),
        }
    )
    file = written(tmp_path, table)
    found = encodings_of(file)
    assert {c for c, e in found.items() if "DELTA_BINARY_PACKED" in e} == {"id", "small", "_offset"}
    assert {c for c, e in found.items() if "RLE_DICTIONARY" in e} == {"word"}
    assert file.read().equals(table)
    default = tmp_path / "default.parquet"
    pq.write_table(table, default, compression="zstd", compression_level=1)
    assert Path(file.metadata and next(tmp_path.rglob("chunk-*"))).stat().st_size < default.stat().st_size


def test_values_that_repeat_later_in_the_chunk_are_not_taken_for_unlike() -> None:
    """A glance at the first rows alone would take the column for a counter."""
    table = pa.table({"k": pa.array([n % 100 for n in range(ROWS)])})
    assert encodings(table)["use_dictionary"] == ["k"]


COLUMNS: dict[str, tuple[pa.DataType, Any]] = {
    "i": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "u": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "s": (pa.string(), st.text(max_size=4)),
    "b": (pa.binary(), st.binary(max_size=4)),
    "f": (pa.float64(), st.floats(allow_nan=False)),
    "t": (pa.bool_(), st.booleans()),
    "n": (pa.null(), st.none()),
    "l": (pa.list_(pa.int64()), st.lists(st.integers(-9, 9), max_size=3)),
}


@given(st.data(), st.lists(st.sampled_from(list(COLUMNS)), unique=True, min_size=1), st.integers(0, 70))
def test_whatever_the_values_they_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, data: Any, names: list[str], rows: int
) -> None:
    columns = {
        n: pa.array(data.draw(st.lists(COLUMNS[n][1] | st.none(), min_size=rows, max_size=rows)), COLUMNS[n][0])
        for n in names
    }
    table = pa.table(columns)
    assert written(tmp_path_factory.mktemp("p"), table).read().equals(table)
