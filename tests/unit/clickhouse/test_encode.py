"""Rows as columns for ClickHouse: exact where it can hold the value, the nearest end where it cannot."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.batch import Batch, Run
from schemas.records import WIRE
from sinks.clickhouse.encode import EXPIRE_MAX_MS, EXPIRE_MIN_MS, encode_records, encode_stream, to_ipc
from sinks.clickhouse.schema import RAW_COLUMNS

RUN = Run(Batch("c", 1_691_999_696_123_456_789), "i", "0" * 32)

INT64 = st.integers(-(2**63), 2**63 - 1)
RECORDS = st.fixed_dictionaries(
    {
        "db": st.integers(0, 2**63 - 1),
        "key": st.binary(max_size=40),
        "type": st.sampled_from(["string", "hash", "module"]),
        "member_count": st.integers(0, 2**63 - 1),
        "rdb_size": st.integers(0, 2**63 - 1),
        "encoding": st.sampled_from(["raw", "module"]),
        "expire_at_ms": st.none() | INT64,
        "idle_seconds": st.none() | st.integers(0, 2**63 - 1),
        "freq": st.none() | st.integers(0, 255),
        "codis_slot": st.none() | st.integers(0, 1023),
        "redis_slot": st.none() | st.integers(0, 16383),
    }
)


def _table(records: list[dict[str, Any]]) -> pa.Table:
    table = pa.table({f.name: pa.array([r[f.name] for r in records], f.type) for f in WIRE})
    return table.append_column("_offset", pa.array(range(len(records)), pa.int64()))


@settings(max_examples=60, deadline=None)
@given(st.lists(RECORDS, max_size=8))
def test_every_record_becomes_a_row_of_the_ddl_columns(records: list[dict[str, Any]]) -> None:
    # RU-15, RU-48; T34 keys, T35 ranges, T36 nanoseconds
    table, saturated = encode_records(_table(records), RUN, "t", 3)
    assert table.column_names == list(RAW_COLUMNS)
    with pa.ipc.open_stream(to_ipc(table)) as reader:
        batches = list(reader)
    assert len(batches) == (1 if records else len(batches))
    assert sum(b.num_rows for b in batches) == len(records)
    columns = table.set_column(1, "batch", table.column("batch").cast(pa.timestamp("ns", "UTC")).cast(pa.int64()))
    columns = columns.set_column(9, "expire_at", table.column("expire_at").cast(pa.int64()))
    outside = 0
    for offset, (row, record) in enumerate(zip(columns.to_pylist(), records, strict=True)):
        expiry = record.pop("expire_at_ms")
        if expiry is not None:
            outside += not EXPIRE_MIN_MS <= expiry <= EXPIRE_MAX_MS
            expiry = min(max(expiry, EXPIRE_MIN_MS), EXPIRE_MAX_MS)
        fixed = {"cluster": "c", "batch": RUN.batch.batch_ts, "instance": "i", "expire_at": expiry}
        assert row == record | fixed | {"_topic": "t", "_partition": 3, "_offset": offset}
    assert saturated == outside


def test_chunked_rows_with_different_dictionaries_are_one_record_batch() -> None:
    first = pa.table(
        {"type": pa.array(["string", "hash"]).dictionary_encode(), "_offset": pa.array([1, 2], pa.int64())}
    )
    second = pa.table({"type": pa.array(["zset"]).dictionary_encode(), "_offset": pa.array([3], pa.int64())})
    with pa.ipc.open_stream(to_ipc(encode_stream(pa.concat_tables([first, second]), "t", 0))) as reader:
        batches = list(reader)
    assert [b.num_rows for b in batches] == [3]
    assert batches[0].to_pylist()[2] == {"type": "zset", "_offset": 3, "_topic": "t", "_partition": 0}
