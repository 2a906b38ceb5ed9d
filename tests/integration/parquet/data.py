"""Dump records and chunks for the tests of the Parquet sink."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from schemas.batch import Batch, Run
from schemas.chunk import Chunk, ChunkId
from schemas.records import ENCODINGS, TYPES, WIRE
from sinks.base import InstanceRange

BATCH = Batch("prod", 1691999696123456789)
SLUG = "2023-08-14_07-54-56.123Z"
INSTANCE = "127.0.0.1:6379"
RUN = Run(BATCH, INSTANCE, "a" * 32)
ROW: dict[str, Any] = {
    "db": 0, "key": b"k", "type": "string", "member_count": 1, "rdb_size": 7, "encoding": "raw", "expire_at_ms": None,
    "idle_seconds": None, "freq": None, "codis_slot": None, "redis_slot": None,
}  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows (missing fields as in ROW) as the engine hands them over: schema WIRE and `_offset`."""
    full = [ROW | row for row in rows]
    columns = {}
    for field in WIRE:
        values = [row[field.name] for row in full]
        if field.name in {"type", "encoding"}:
            words = TYPES if field.name == "type" else ENCODINGS
            indexes = pa.array([words.index(v) for v in values], pa.int8())
            columns[field.name] = pa.DictionaryArray.from_arrays(indexes, pa.array(words))
        else:
            columns[field.name] = pa.array(values, field.type)
    schema = WIRE.append(pa.field("_offset", pa.int64()))
    return pa.table({**columns, "_offset": pa.array(range(len(full)), pa.int64())}, schema=schema)


def chunk(first: int, last: int, keys: Sequence[bytes | dict[str, Any]], run: Run | None = RUN, **other: Any) -> Chunk:
    """A chunk of a run's partition; a row is a key, or fields."""
    rows = [k if isinstance(k, dict) else {"key": k} for k in keys]
    identity = {"topic": "t", "topic_id": "id", "epoch": 0, "partition": 0, "crc": 1, **other}
    return Chunk(ChunkId(first=first, last=last, **identity), table(rows), run)


def between(begin: int, done: int, exclusive: bool = True) -> InstanceRange:
    """Range of a run in the partition of `chunk`."""
    return InstanceRange("id", 0, 0, begin, done, exclusive)
