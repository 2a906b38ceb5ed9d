"""Runs, chunks and rows for the ClickHouse tests."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from schemas.batch import Batch, Run
from schemas.chunk import Chunk, ChunkId
from schemas.records import WIRE
from sinks.base import InstanceRange

NOW_NS = time.time_ns() // 1_000_000_000 * 1_000_000_000 + 123_456_789
"""A batch of today with nine digits that no float keeps."""
TOPIC_ID = "AAAAAAAAAAAAAAAAAAAAAA"


def a_run(instance: str = "10.0.0.1:6379", *, cluster: str = "clu'ster\\1", batch_ts: int = NOW_NS, n: int = 1) -> Run:
    return Run(Batch(cluster, batch_ts), instance, f"{n:032x}")


def a_chunk_id(first: int, last: int, **changes: Any) -> ChunkId:
    return replace(ChunkId("rdb.records.c.i", TOPIC_ID, 0, 0, first, last, generation=1), **changes)


def rows(offsets: Sequence[int], **columns: Sequence[Any]) -> pa.Table:
    """WIRE rows, one per offset, with keys named after the offset, and `_offset`."""
    n = len(offsets)
    values: dict[str, Sequence[Any]] = {
        "db": [0] * n,
        "key": [b"key:%d" % o for o in offsets],
        "type": ["string"] * n,
        "member_count": [1] * n,
        "rdb_size": [100 + o for o in offsets],
        "encoding": ["raw"] * n,
        "expire_at_ms": [None] * n,
        "idle_seconds": [None] * n,
        "freq": [None] * n,
        "codis_slot": [None] * n,
        "redis_slot": [None] * n,
        **columns,
    }
    table = pa.table({f.name: pa.array(values[f.name], f.type) for f in WIRE})
    return table.append_column("_offset", pa.array(offsets, pa.int64()))


def a_chunk(run: Run, first: int, last: int, *, replayed: bool = False, **changes: Any) -> Chunk:
    """A chunk with one row per offset of its range."""
    identity = a_chunk_id(first, last, **changes)
    return Chunk(identity, rows(range(first, last + 1)), run, replayed)


def where(begin: int, done: int, **changes: Any) -> InstanceRange:
    return replace(InstanceRange(TOPIC_ID, 0, 0, begin, done, exclusive=True), **changes)
