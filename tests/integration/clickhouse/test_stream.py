"""Ordinary streams into a table of the user's own. Both backends."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from millstream.errors import AttemptExhaustedError, RetryableSinkError, SinkError
from schemas.chunk import Chunk
from sinks.clickhouse import ClickHouseStream
from tests.integration.clickhouse.conftest import Place, Stream
from tests.integration.clickhouse.data import a_chunk_id
from tests.support.clickhouse_server import ClickHouseServer

TABLE = (
    "CREATE TABLE {db}.orders (id Int64, day Date, note Nullable(String), amount Decimal(18, 2),"
    " state Enum8('it''s new' = 1, 'paid' = 2), at DateTime64(3, 'UTC'), extra String DEFAULT 'none',"
    " _topic LowCardinality(String), _partition Int32, _offset Int64)"
    " ENGINE = MergeTree PARTITION BY day ORDER BY (_topic, _partition, _offset)"
    " SETTINGS non_replicated_deduplication_window = 1000"
)


def _chunk(first: int, last: int, *, replayed: bool = False, days: int = 1, **changes: Any) -> Chunk:
    offsets = list(range(first, last + 1))
    n = len(offsets)
    table = pa.table(
        {
            "id": pa.array(offsets, pa.int64()),
            "day": pa.array([20_000 + o % days for o in offsets], pa.int32()).cast(pa.date32()),
            "note": pa.array([None if o % 2 else f"n'{o}\n" for o in offsets]),
            "amount": pa.array([f"{o}.50" for o in offsets]),
            "state": pa.array(["it's new"] * n),
            "at": pa.array([1_691_999_696_123] * n, pa.timestamp("ms", tz="UTC")),
            "_offset": pa.array(offsets, pa.int64()),
        }
    )
    return Chunk(a_chunk_id(first, last, topic="orders", **changes), table, None, replayed)


async def test_records_land_in_the_users_own_table_once(place: Place, stream: Stream) -> None:
    await place.run(TABLE)
    sink = await stream(place, "orders")
    assert sink.name == "clickhouse.orders"
    for _ in range(2):
        assert (await sink.write_chunk(_chunk(0, 9))).rows == 10
    assert await sink.have(_chunk(0, 9, replayed=True)) is not None
    assert await sink.have(_chunk(10, 19, replayed=True)) is None
    stored = await place.rows(
        "SELECT toInt32(id), note, toString(amount), toString(state), toString(at), extra, _topic, _partition,"
        " toInt32(_offset) FROM {db}.orders ORDER BY id LIMIT 2"
    )
    at = "2023-08-14 07:54:56.123"
    assert stored == [
        [0, "n'0\n", "0.5", "it's new", at, "none", "orders", 0, 0],
        [1, None, "1.5", "it's new", at, "none", "orders", 0, 1],
    ]


async def test_a_table_without_position_columns_is_refused_with_the_alter_to_run(place: Place, stream: Stream) -> None:
    await place.run(
        "CREATE TABLE {db}.t (id Int64, _offset Int64) ENGINE = MergeTree ORDER BY id"
        " SETTINGS non_replicated_deduplication_window = 9"
    )
    sink = ClickHouseStream(place.config(), "t")
    with pytest.raises(SinkError) as refused:
        await sink.open()
    alter = str(refused.value).split("Run: ")[1]
    expected = (
        f"ALTER TABLE `{place.database}`.`t` ADD COLUMN _topic LowCardinality(String), ADD COLUMN _partition Int32"
    )
    assert alter == expected
    await place.run(alter)
    await stream(place, "t")
    with pytest.raises(SinkError, match=r"table `.*`.`nope` does not exist"):
        await ClickHouseStream(place.config(), "nope").open()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("_offset UInt32) ENGINE = MergeTree ORDER BY id", "MODIFY COLUMN _offset Int64"),
        ("_offset Int64) ENGINE = ReplacingMergeTree ORDER BY id", "ReplacingMergeTree, which may drop rows"),
        ("_offset Int64) ENGINE = MergeTree ORDER BY id", "MODIFY SETTING non_replicated_deduplication_window = 1000"),
    ],
)
async def test_a_table_that_cannot_tell_what_it_holds_is_refused(place: Place, table: str, message: str) -> None:
    # hole g
    await place.run(f"CREATE TABLE {{db}}.t (id Int64, _topic String, _partition Int32, {table}")
    sink = ClickHouseStream(place.config(), "t")
    with pytest.raises(SinkError, match=message):
        await sink.open()


async def test_a_record_column_that_the_table_lacks_is_named(place: Place, stream: Stream) -> None:
    await place.run(TABLE)
    chunk = _chunk(0, 1)
    wider = chunk.records.append_column("colour", pa.array(["red", "blue"]))
    sink = await stream(place, "orders")
    with pytest.raises(SinkError, match=r"orders has no column colour, which records of orders have.*ADD COLUMN"):
        await sink.write_chunk(Chunk(chunk.id, wider))
    with pytest.raises(SinkError, match=r"could not insert orders\[0\] 0..1 into .*orders: code"):
        await sink.write_chunk(Chunk(chunk.id, chunk.records.set_column(3, "amount", pa.array(["many", "few"]))))
    assert await place.count("orders") == 0
    assert (await sink.write_chunk(chunk)).rows == 2


async def test_a_piece_of_a_chunk_is_replaced_by_the_whole_chunk(
    served: Place, server: ClickHouseServer, stream: Stream
) -> None:
    # A table partitioned finer than a chunk takes it as several parts, and a crash can leave some of them.
    await served.run(TABLE)
    sink, chunk = await stream(served, "orders"), _chunk(0, 9, days=2)
    server.fault("drop_after")
    with pytest.raises(RetryableSinkError):
        await sink.write_chunk(chunk)
    await served.run("DELETE FROM {db}.orders WHERE day = toDate(20000)")
    with pytest.raises(AttemptExhaustedError, match="holds 5 of its 10 rows"):
        await sink.write_chunk(chunk)
    assert (await sink.write_chunk(chunk.at_attempt(1))).rows == 10
    assert await served.count("orders") == 10
    assert await served.rows("SELECT toInt32(uniqExact(id)) FROM {db}.orders") == [[10]]
