"""What an agent is given, and what becomes of it: chunks, chunk streams, dead letters, event messages."""

from __future__ import annotations

import asyncio
from typing import Any

import pyarrow as pa
import pytest

from schemas.chunk import ChunkId
from schemas.codecs import Rejected
from streams.engine.agents import ChunkStream
from streams.engine.chunk import Chunk, Output
from streams.engine.dead_letters import dead_letter
from streams.engine.task import EventMessage
from tables.scope import OutsideChunkError, current
from tests.unit.engine.logs import Record

ID = ChunkId("orders", "id", 1, 3, 10, 12, 77, 2, 5)


def chunk(**kwargs: Any) -> Chunk:
    made = Chunk(ID, [Record(10 + i, b"%d" % i, key=b"k") for i in range(3)], **kwargs)
    made.table = pa.table({"v": [0, 1, 2], "_offset": [10, 11, 12]})
    return made


def test_a_rejected_record_becomes_a_dead_letter_with_its_bytes_and_where_it_came_from() -> None:  # T13
    record = Record(11, b"\xff\x00", key=b"k\xff", timestamp=1234, headers=(("trace", b"1"), ("trace", b"2")))
    letter = dead_letter(chunk(), Rejected(record, "no JSON: \u00fc"))
    assert letter == Output(
        "orders.dlq",
        b"k\xff",
        b"\xff\x00",
        -1,
        0,
        [
            ("trace", b"1"),
            ("trace", b"2"),
            ("millstream.dlq.reason", "no JSON: \u00fc".encode()),
            ("millstream.dlq.topic", b"orders"),
            ("millstream.dlq.partition", b"3"),
            ("millstream.dlq.offset", b"11"),
            ("millstream.dlq.timestamp", b"1234"),
        ],
    )


def test_an_agent_can_reject_a_record_of_its_chunk_and_no_other() -> None:
    made = chunk()
    made.reject(11, "negative price")
    assert [(r.record.offset, r.reason) for r in made.rejected] == [(11, "negative price")]
    with pytest.raises(ValueError, match="offset 13 is not in chunk"):
        made.reject(13, "")


async def test_columns_are_sent_as_a_record_per_row() -> None:
    made = chunk()
    keys = pa.chunked_array([["a", None], ["c"]])
    await made.send_columns("out", keys, pa.array([b"1", b"\xff", None]))
    assert made.outputs == [Output("out", b"a", b"1"), Output("out", None, b"\xff"), Output("out", b"c", None)]


async def test_columns_that_are_no_bytes_or_do_not_fit_are_refused() -> None:
    made = chunk()
    with pytest.raises(ValueError, match="'out': 1 keys, 2 values"):
        await made.send_columns("out", pa.array(["a"]), pa.array(["1", "2"]))
    with pytest.raises(ValueError, match="'out': a column of int64"):
        await made.send_columns("out", pa.array(["a"]), pa.array([1]))
    assert made.outputs == []
    made.abandon()
    with pytest.raises(OutsideChunkError):
        await made.send_columns("out", pa.array(["a"]), pa.array(["1"]))


def test_a_sink_gets_the_rows_under_the_identity_of_the_chunk() -> None:
    made = chunk(replayed=True)
    for_sink = made.for_sink()
    assert (for_sink.id, for_sink.rows, for_sink.replayed) == (ID, 3, True)
    assert made.for_sink(made.table.slice(1)).rows == 2


async def test_a_chunk_outside_of_a_cycle_has_no_attempts_to_raise() -> None:
    with pytest.raises(RuntimeError, match="not driven by a commit cycle"):
        await chunk().raise_attempt()


def test_a_chunk_is_done_when_every_agent_is_through() -> None:
    made = chunk()
    made.begin(2)
    made.finished()
    assert not made.done.is_set()
    made.finished()
    assert made.done.is_set()
    nobody = chunk()
    nobody.begin(0)
    assert nobody.done.is_set()


async def test_asking_for_the_next_chunk_finishes_the_last_one() -> None:
    stream, first, second = ChunkStream(), chunk(), chunk()
    seen = []

    async def agent() -> None:
        async for item in stream:
            seen.append((item, current()))

    for item in (first, second):
        item.begin(1)
    task = asyncio.create_task(agent())
    stream.put(first)
    await asyncio.wait_for(first.done.wait(), 5)
    assert not second.done.is_set()
    stream.put(second)
    await asyncio.wait_for(second.done.wait(), 5)
    assert seen == [(first, first), (second, second)], "the chunk is what tables and producers see as current"
    assert current() is None
    task.cancel()


async def test_a_chunk_whose_agent_failed_is_not_finished() -> None:  # T1
    stream, made = ChunkStream(), chunk()
    made.begin(1)
    stream.put(made)

    async def agent() -> None:
        async for _ in stream:
            raise KeyError

    with pytest.raises(KeyError):
        await agent()
    assert not made.done.is_set()


async def test_tasks_that_an_agent_spawns_belong_to_its_chunk() -> None:  # design section 3
    stream, made = ChunkStream(), chunk(tables=frozenset({"t"}))
    stream.put(made)
    await stream.__anext__()

    async def spawned() -> Any:
        return current()

    assert await asyncio.create_task(spawned()) is made
    made.abandon()
    with pytest.raises(OutsideChunkError):
        made.table_changes("t")


def test_an_event_is_finished_once_however_often_it_is_acknowledged() -> None:
    made = chunk()
    made.begin(2)
    message = EventMessage("orders", 3, 10, 1.0, 0, (), None, b"0", None, 0, 1)
    message.chunk = made
    for acked in (False, True, True, False, True):
        message.acked = acked
    assert not made.done.is_set(), "one of two events"
    assert message.acked
