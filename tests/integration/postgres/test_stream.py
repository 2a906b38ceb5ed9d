"""Chunks into a Postgres table: each once, whoever writes it, whatever happens in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pyarrow as pa
import pytest

from millstream import failpoints
from millstream.errors import ConfigError, IdentityMismatchError, RetryableSinkError, SinkError
from millstream.failpoints import FailpointError
from millstream.postgres import connect
from schemas.chunk import Chunk, ChunkId
from sinks.postgres import Append, PostgresConfig, PostgresStream

MakeSink = Callable[..., PostgresStream]


def chunk(first: int, last: int, *, topic_id: str = "tid", epoch: int = 0, crc: int = 7, extra: bool = False) -> Chunk:
    offsets = pa.array(range(first, last + 1), pa.int64())
    columns = {"id": offsets, "k": pa.array([f"k{o % 3}" for o in range(first, last + 1)]), "_offset": offsets}
    if extra:
        columns = {"unknown": offsets} | columns
    return Chunk(ChunkId("orders", topic_id, epoch, 1, first, last, crc), pa.table(columns))


@pytest.fixture
async def make(postgres: str) -> AsyncIterator[Callable[..., PostgresStream]]:
    async with connect(postgres) as connection:
        await connection.execute(
            "CREATE TABLE events (id bigint, k text, _topic text NOT NULL, _partition int NOT NULL, _offset bigint)"
        )
    made: list[PostgresStream] = []

    def make(table: str = "events", url: str = postgres) -> PostgresStream:
        made.append(PostgresStream(PostgresConfig(url, 2), Append(table)))
        return made[-1]

    yield make
    for sink in made:
        await sink.close()


async def offsets(url: str) -> list[int]:
    async with connect(url) as connection:
        rows = await connection.fetch(
            "SELECT _offset FROM events WHERE _topic = 'orders' AND _partition = 1 ORDER BY 1"
        )
        return [row["_offset"] for row in rows]


async def test_a_chunk_is_there_once_however_often_it_is_written(make: MakeSink, postgres: str) -> None:
    first, second = make(), make()
    await first.open()
    await second.open()
    one = chunk(0, 9)
    assert await first.have(one) is None
    receipts = await asyncio.gather(*(sink.write_chunk(one) for sink in (first, second) * 4))
    assert {r.rows for r in receipts} == {10}
    assert await second.have(one) == receipts[0]  # hole h
    assert await second.have(chunk(10, 19)) is None
    await second.write_chunk(chunk(15, 19))  # 10..14 held nothing for this sink
    assert await offsets(postgres) == [*range(10), *range(15, 20)]


@pytest.mark.parametrize("at", ["postgres.begun", "postgres.applied", "postgres.recorded", "postgres.committed"])
async def test_a_write_that_broke_off_anywhere_is_whole_or_not_there(make: MakeSink, postgres: str, at: str) -> None:
    sink = make()
    await sink.open()
    failpoints.arm(f"{at}=error")
    try:
        with pytest.raises(FailpointError):
            await sink.write_chunk(chunk(0, 9))
    finally:
        failpoints.arm("")
    assert await offsets(postgres) == (list(range(10)) if at == "postgres.committed" else [])
    await sink.write_chunk(chunk(0, 9))
    assert await offsets(postgres) == list(range(10))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (chunk(5, 12), "of another range"),
        (chunk(0, 9, crc=8), "of another range"),
        (chunk(0, 9, topic_id="new"), "deleted and made anew"),  # hole b
    ],
)
async def test_something_else_under_the_same_offsets_stops_the_worker(make: MakeSink, other: Chunk, told: str) -> None:
    sink = make()
    await sink.open()
    await sink.write_chunk(chunk(0, 9))
    for act in (sink.have, sink.write_chunk):
        with pytest.raises(IdentityMismatchError, match=told):
            await act(other)


async def test_a_worker_that_was_overtaken_is_told_so(make: MakeSink, postgres: str) -> None:
    """Paused before it wrote; its successor has written that chunk and the next one (seed 487572574)."""
    sink = make()
    await sink.open()
    for each in (chunk(0, 9), chunk(10, 19)):
        await sink.write_chunk(each)
    for act in (sink.have, sink.write_chunk):
        with pytest.raises(
            SinkError, match=r"this worker lost \S+\[\d+\]: .* later chunk \(.*, 10..19\) than 0..9"
        ) as told:
            await act(chunk(0, 9))
        assert not isinstance(told.value, IdentityMismatchError)
    assert await offsets(postgres) == list(range(20))


async def test_a_reset_allows_earlier_offsets_and_shuts_out_who_was_before(make: MakeSink, postgres: str) -> None:
    sink = make()
    await sink.open()
    await sink.write_chunk(chunk(0, 9))
    await sink.write_chunk(chunk(0, 4, epoch=1))
    with pytest.raises(IdentityMismatchError, match="of a later epoch"):
        await sink.write_chunk(chunk(10, 19))
    assert await offsets(postgres) == sorted([*range(10), *range(5)])


async def test_a_table_or_column_that_is_missing_is_named(make: MakeSink) -> None:
    with pytest.raises(ConfigError, match="no table 'nowhere'"):
        await make("nowhere").open()
    sink = make()
    await sink.open()
    with pytest.raises(SinkError, match="no column 'unknown'"):
        await sink.write_chunk(chunk(0, 1, extra=True))


async def test_a_server_that_is_away_is_retried_and_its_password_not_shown(make: MakeSink) -> None:
    sink = make(url="postgresql://me:secretword@127.0.0.1:9/nowhere")
    with pytest.raises(RetryableSinkError, match="ConnectionRefusedError") as caught:
        await sink.open()
    assert "secretword" not in str(caught.value)  # T42


async def test_a_value_that_the_table_refuses_is_an_error_with_its_reason(make: MakeSink, postgres: str) -> None:
    async with connect(postgres) as connection:
        await connection.execute("ALTER TABLE events ADD CONSTRAINT small CHECK (id < 5)")
    sink = make()
    await sink.open()
    with pytest.raises(SinkError, match=r"constraint small.*The chunk was not written"):
        await sink.write_chunk(chunk(0, 9))
    assert await sink.have(replace(chunk(0, 9), replayed=True)) is None
