"""The record model of a Redis dump: one row per key (`facts.md` 2.1), on the wire and in the sinks."""

from __future__ import annotations

from functools import cache

import pyarrow as pa

TYPES = ("string", "list", "set", "zset", "hash", "stream", "module")
ENCODINGS = (
    "raw", "int", "lzf", "list", "zip_list", "quick_list", "quick_list2", "int_set", "list_pack", "skip_list",
    "zip_map", "metadata", "list_pack_ex", "list_packs", "list_packs2", "list_packs3", "module",
)  # fmt: skip


@cache
def words(column: str) -> pa.StringArray:
    """The dictionary of `type` or `encoding`. Not made on import: with its first array pyarrow imports pandas."""
    return pa.array({"type": TYPES, "encoding": ENCODINGS}[column], pa.utf8())


_WORD = pa.dictionary(pa.int8(), pa.utf8())

WIRE = pa.schema(
    [
        pa.field("db", pa.int64(), nullable=False),
        pa.field("key", pa.binary(), nullable=False),
        pa.field("type", _WORD, nullable=False),
        pa.field("member_count", pa.int64(), nullable=False),
        pa.field("rdb_size", pa.int64(), nullable=False),
        pa.field("encoding", _WORD, nullable=False),
        pa.field("expire_at_ms", pa.int64()),
        pa.field("idle_seconds", pa.int64()),
        pa.field("freq", pa.int32()),
        pa.field("codis_slot", pa.int32()),
        pa.field("redis_slot", pa.int32()),
    ]
)
"""Columns of one `rows` message in an instance's topic. `type` and `encoding` index TYPES and ENCODINGS."""

PARQUET = pa.schema(
    [
        pa.field("cluster", pa.utf8(), nullable=False),
        pa.field("batch", pa.timestamp("ns", tz="UTC"), nullable=False),
        pa.field("instance", pa.utf8(), nullable=False),
        pa.field("db", pa.int64(), nullable=False),
        pa.field("key", pa.binary(), nullable=False),
        pa.field("type", pa.utf8(), nullable=False),
        pa.field("member_count", pa.int64(), nullable=False),
        pa.field("rdb_size", pa.int64(), nullable=False),
        pa.field("encoding", pa.utf8(), nullable=False),
        pa.field("expire_at", pa.timestamp("ms", tz="UTC")),
        pa.field("idle_seconds", pa.int64()),
        pa.field("freq", pa.int32()),
        pa.field("codis_slot", pa.int32()),
        pa.field("redis_slot", pa.int32()),
    ]
)
"""The 14 columns of a published Parquet file, in this order (RP-20…RP-33)."""
