"""Rows as ClickHouse takes them: whole columns at a time, never a Python object per row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.batch import Run
from sinks.clickhouse.schema import RAW_COLUMNS

EXPIRE_MAX_MS = 10_413_791_999_999
"""2299-12-31T23:59:59.999Z, the last DateTime64(3)."""
EXPIRE_MIN_MS = -2_208_988_800_000
"""1900-01-01T00:00:00.000Z, the first one."""

_SAME = ("member_count", "rdb_size", "idle_seconds", "freq", "codis_slot", "redis_slot")


def encode_records(records: pa.Table, run: Run, label: str, partition: int) -> tuple[pa.Table, int]:
    """The columns of `redis_records_raw` for WIRE rows with `_offset` (RU-15, RU-48), and how many expiries saturated.

    An expiry outside DateTime64(3) becomes its nearest end (T35); the batch stays an integer of nanoseconds until it is
    a timestamp (T36); keys stay bytes (T34). What is the same in every row is sent once, as a dictionary of one value.
    """
    rows = records.num_rows
    expiry = records.column("expire_at_ms")
    outside = pc.or_(pc.greater(expiry, EXPIRE_MAX_MS), pc.less(expiry, EXPIRE_MIN_MS))
    saturated = int(pc.sum(outside).as_py() or 0)
    if saturated:
        expiry = pc.min_element_wise(expiry, EXPIRE_MAX_MS, skip_nulls=False)
        expiry = pc.max_element_wise(expiry, EXPIRE_MIN_MS, skip_nulls=False)
    columns: dict[str, Any] = {
        "cluster": constant(pa.scalar(run.batch.cluster), rows),
        "batch": constant(pa.scalar(run.batch.batch_ts, pa.timestamp("ns", tz="UTC")), rows),
        "instance": constant(pa.scalar(run.instance), rows),
        "db": records.column("db"),
        "key": records.column("key"),
        "type": records.column("type"),
        "encoding": records.column("encoding"),
        "expire_at": expiry.cast(pa.timestamp("ms", tz="UTC")),
        "_topic": constant(pa.scalar(label), rows),
        "_partition": constant(pa.scalar(partition, pa.int32()), rows),
        "_offset": records.column("_offset"),
    }
    columns.update((name, records.column(name)) for name in _SAME)
    return pa.table({name: columns[name] for name in RAW_COLUMNS}), saturated


def encode_stream(records: pa.Table, label: str, partition: int) -> pa.Table:
    """The rows of an ordinary stream with `_topic` and `_partition` beside the `_offset` they have."""
    rows = records.num_rows
    records = records.append_column("_topic", constant(pa.scalar(label), rows))
    return records.append_column("_partition", constant(pa.scalar(partition, pa.int32()), rows))


def constant(value: pa.Scalar, rows: int) -> pa.DictionaryArray:
    """A column that repeats one value, at a byte per row."""
    # Not by way of Python: a time in nanoseconds has no value there unless pandas is installed, and the image has none.
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), pa.repeat(value, 1))


def to_ipc(table: pa.Table) -> bytes:
    """An Arrow IPC stream of one record batch: one batch is one block, and a block is inserted whole or not at all."""
    table = table.unify_dictionaries().combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
