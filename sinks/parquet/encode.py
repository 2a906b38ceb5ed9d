"""Rows to columns: the wire form of dump records, the form of parts, and the 14 published columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millstream.errors import SinkError
from schemas.batch import Batch
from schemas.records import PARQUET, WIRE, words

_WORDS = ("type", "encoding")

PART = pa.schema([f.with_type(pa.int8()) if f.name in _WORDS else f for f in WIRE])
"""Columns of a part: the wire's, with words as plain indexes into TYPES and ENCODINGS (add words at the end only).

Cluster, batch and instance are the same in every row; they come back in `record_to_columns`.
"""

_CONSTANT = pa.dictionary(pa.int8(), pa.utf8())

WRITER = pa.schema([f.with_type(_CONSTANT) if pa.types.is_string(f.type) else f for f in PARQUET])
"""PARQUET as it is handed to the writer: text by dictionary. Written without its Arrow schema, it reads as PARQUET."""

DICTIONARIES = ["cluster", "batch", "instance", "db", "type", "encoding"]
"""Columns with few values; on the others a dictionary costs CPU and saves nothing."""

_COMPARED = {
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float32(), pa.float64(), pa.string(), pa.large_string(), pa.binary(), pa.large_binary()),
    *(pa.date32(), pa.date64()),
}
"""Types whose values are looked at; columns of others keep a dictionary, the default."""

SAMPLE = 1024
"""Rows that are looked at to tell whether values repeat. If all differ, each value stands there ten times or fewer."""


def to_part(records: pa.Table) -> pa.RecordBatch:
    """One batch of schema PART of a chunk's records. Raises SinkError naming the field that does not fit."""
    missing = [name for name in WIRE.names if name not in records.column_names]
    if missing:
        raise SinkError(f"dump records without the fields {', '.join(missing)}: expected {', '.join(WIRE.names)}")
    table = records.select(WIRE.names)
    columns = [_indexes(f.name, table[f.name]) if f.name in _WORDS else table[f.name] for f in WIRE]
    try:
        whole = pa.table(columns, names=WIRE.names).cast(PART).combine_chunks()
    except ValueError as e:  # ArrowInvalid is one; a null where none may be gives a plain one
        raise SinkError(f"dump records do not fit the record model: {e}") from e
    batches = whole.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], PART)


def sorted_part(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows by (db, key), keys as unsigned bytes; equal ones keep their order."""
    if is_one_db(rows):
        return rows.take(pc.array_sort_indices(rows["key"]))
    keys = rows.select(["db", "key"])
    return rows.take(pc.sort_indices(keys, sort_keys=[("db", "ascending"), ("key", "ascending")]))


def is_one_db(rows: pa.RecordBatch) -> bool:
    """Whether all rows are of one db, as nearly always."""
    ends = pc.min_max(rows["db"])
    return bool(ends["min"] == ends["max"])


def record_to_columns(records: pa.Table, batch: Batch, instance: str) -> pa.Table:
    """The published columns (RP-20 to RP-34) of rows of schema PART; `instance` as given, not as in file names.

    Integers stay integers on the way to timestamps: exact past year 9999 (T35) and to the nanosecond (T36).
    """
    rows = records.num_rows
    columns = {
        "cluster": _constant(batch.cluster, rows),
        "batch": pa.repeat(pa.scalar(batch.batch_ts, pa.int64()), rows).view(PARQUET.field("batch").type),
        "instance": _constant(instance, rows),
        "expire_at": _view(records["expire_at_ms"], PARQUET.field("expire_at").type),
    }
    for name in _WORDS:
        chunks = [pa.DictionaryArray.from_arrays(c, words(name)) for c in records[name].chunks]
        columns[name] = pa.chunked_array(chunks, type=_CONSTANT)
    return pa.table([columns[n] if n in columns else records[n] for n in WRITER.names], schema=WRITER)


def encodings(table: pa.Table) -> dict[str, Any]:
    """Arguments of pyarrow's ParquetWriter: no dictionary where values hardly repeat, differences for such integers.

    `_offset` and other counters then take hardly any room, and all of them a third of the CPU time.
    """
    if any(pa.types.is_nested(f.type) for f in table.schema):
        return {}  # the columns of a file are then others than those of the table
    unlike = _all_differ(table.slice(0, 64))  # a glance that leaves few columns to look at
    if table.num_rows > SAMPLE and unlike:
        picks = np.unique(np.random.default_rng(0).integers(0, table.num_rows, SAMPLE))  # the same for the same chunk
        unlike = _all_differ(table.select(unlike).take(pa.array(picks)))
    deltas = [n for n in unlike if table.schema.field(n).type in (pa.int32(), pa.int64())]
    return {
        "use_dictionary": [n for n in table.schema.names if n not in unlike],
        "column_encoding": dict.fromkeys(deltas, "DELTA_BINARY_PACKED") or None,
    }


def _all_differ(rows: pa.Table) -> list[str]:
    known = (f.name for f in rows.schema if f.type in _COMPARED or pa.types.is_timestamp(f.type))
    return [n for n in known if pc.count_distinct(rows[n]).as_py() == rows.num_rows > 1]


def _constant(text: str, rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), rows), pa.array([text]))


def _view(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([c.view(kind) for c in column.chunks], type=kind)


def _indexes(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Indexes into our words, whatever dictionaries the feeder sent."""
    dictionary = words(name)
    chunks = []
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type) and chunk.dictionary.equals(dictionary):
            chunks.append(chunk.indices)
            continue
        found = pc.index_in(chunk.cast(pa.utf8()), dictionary)
        if found.null_count:
            unknown = chunk.filter(found.is_null())[0].as_py()
            raise SinkError(f"dump records: {name} {unknown!r} is not one of {', '.join(dictionary.to_pylist())}")
        chunks.append(found.cast(pa.int8()))
    return pa.chunked_array(chunks, type=pa.int8())
