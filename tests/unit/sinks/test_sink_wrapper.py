"""The sink wrapper: what goes to which sink, what is counted, what passes at once."""

from __future__ import annotations

import asyncio

import pytest

from millstream.errors import (
    BatchRefusedError,
    IdentityMismatchError,
    RetryableSinkError,
    SinkError,
)
from schemas.batch import Run
from schemas.chunk import Chunk, Receipt
from sinks.base import BatchSink, InstanceRange, Sink
from sinks.memory import MemoryBatchSink, MemorySink
from sinks.wrapper import SinkGroup
from tests.unit.sinks.chunks import RUN, WHERE, chunk, counted, quick


def test_the_memory_sinks_are_sinks() -> None:
    plain: Sink = MemorySink()
    batch: BatchSink = MemoryBatchSink()
    assert isinstance(batch, BatchSink)
    assert not isinstance(plain, BatchSink)


async def test_a_chunk_is_written_to_every_sink_and_the_receipts_come_in_their_order() -> None:
    a, b = MemorySink("a"), MemorySink("b")
    receipts = await quick(a, b).write(chunk())
    assert [(r.sink, r.rows) for r in receipts] == [("a", 2), ("b", 2)]
    assert a.table == b.table == chunk().records


async def test_sinks_are_written_at_the_same_time() -> None:
    meeting = asyncio.Barrier(2)

    class Meets(MemorySink):
        async def write_chunk(self, chunk: Chunk) -> Receipt:
            await meeting.wait()
            return await super().write_chunk(chunk)

    async with asyncio.timeout(5):
        assert len(await quick(Meets("a"), Meets("b")).write(chunk())) == 2


async def test_a_replayed_chunk_that_a_sink_holds_is_not_written_again_and_gives_the_same_receipt() -> None:  # hole h
    holds, lacks = MemorySink("holds"), MemorySink("lacks")
    before = await quick(holds).write(chunk())
    skipped = counted("millstream_sink_skipped_total", sink="holds")
    after = await quick(holds, lacks).write(chunk(replayed=True))
    assert after[0] == before[0]
    assert holds.calls == ["write_chunk", "have"]
    assert lacks.calls == ["have", "write_chunk"]
    assert counted("millstream_sink_skipped_total", sink="holds") == skipped + 1


async def test_a_first_write_does_not_ask_whether_the_sink_has_it() -> None:
    sink = MemorySink()
    await quick(sink).write(chunk())
    assert sink.calls == ["write_chunk"]


async def test_another_chunk_under_the_same_identity_stops_the_write() -> None:  # hole b
    sink = MemorySink()
    await quick(sink).write(chunk(crc=1))
    with pytest.raises(IdentityMismatchError, match="crc 00000001"):
        await quick(sink).write(chunk(crc=2, replayed=True))


async def test_rows_bytes_seconds_retries_and_errors_are_counted_by_sink() -> None:
    sink = MemorySink("counted")
    sink.fail("write_chunk", RetryableSinkError("no"))
    await quick(sink).write(chunk())
    assert counted("millstream_sink_rows_total", sink="counted") == 2
    assert counted("millstream_sink_bytes_total", sink="counted") == chunk().records.nbytes
    assert counted("millstream_sink_retries_total", sink="counted", operation="write_chunk") == 1
    assert counted("millstream_sink_errors_total", sink="counted", error="RetryableSinkError") == 1
    assert counted("millstream_sink_seconds_count", sink="counted", operation="write_chunk") == 1


async def test_a_batch_goes_through_all_verbs_in_every_sink() -> None:
    a, b, plain = MemoryBatchSink("a"), MemoryBatchSink("b"), MemorySink("plain")
    group = quick(a, b, plain)
    await group.open()
    await group.open_batch(RUN)
    await group.write(chunk(run=RUN))
    assert await group.finalize_instance(RUN, WHERE) == {"a": 2, "b": 2}
    for _ in range(2):  # T31: again is no error
        await group.finalize_batch(RUN.batch, {RUN.instance: (RUN, WHERE)})
    await group.abort_run(RUN)  # never touches what is published
    await group.close()
    assert a.published[RUN.batch][RUN.instance] == chunk().records
    assert plain.calls == ["open", "write_chunk", "close"]


async def test_sinks_that_disagree_on_an_instances_rows_stop_the_batch() -> None:
    a, b = MemoryBatchSink("a"), MemoryBatchSink("b")
    group = quick(a, b)
    await group.open_batch(RUN)
    await group.write(chunk(run=RUN))
    b.chunks.clear()
    with pytest.raises(SinkError, match=r"'10.0.0.1:6379'.*\(a: 2, b: 0\).*Nothing was published"):
        await group.finalize_instance(RUN, WHERE)


async def test_a_refused_batch_is_told_as_it_is() -> None:
    sink = MemoryBatchSink()
    group = quick(sink)
    await group.open_batch(RUN)
    await group.finalize_batch(RUN.batch, {RUN.instance: (RUN, WHERE)})
    with pytest.raises(BatchRefusedError, match="published already"):
        await group.open_batch(Run(RUN.batch, RUN.instance, "b" * 32))


async def test_opening_fails_as_a_whole_and_closes_what_was_opened() -> None:
    good, bad = MemorySink("good"), MemorySink("bad")
    bad.fail("open", SinkError("no such directory"))
    with pytest.raises(SinkError, match="no such directory"):
        await quick(good, bad).open()
    assert "close" in good.calls
    assert "close" in bad.calls


async def test_why_opening_failed_is_told_though_closing_fails_too() -> None:
    class Stuck(MemorySink):
        async def close(self) -> None:
            raise SinkError("stuck")

    bad = MemorySink("bad")
    bad.fail("open", SinkError("no such directory"))
    with pytest.raises(SinkError, match="no such directory") as raised:
        await quick(Stuck("stuck"), bad).open()
    assert raised.value.__notes__ == ["closing the sinks failed too: SinkError: stuck"]


async def test_one_sink_that_cannot_be_closed_does_not_keep_the_others_open() -> None:
    class Stuck(MemorySink):
        async def close(self) -> None:
            raise SinkError("stuck")

    other = MemorySink("other")
    with pytest.raises(SinkError, match="stuck"):
        await quick(Stuck("stuck"), other).close()
    assert other.calls == ["close"]


def test_two_sinks_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name: memory"):
        SinkGroup([MemorySink(), MemorySink()])


async def test_the_memory_sink_drops_a_run_that_a_later_one_voids() -> None:  # hole e
    sink = MemoryBatchSink()
    await sink.open_batch(RUN)
    await sink.write_chunk(chunk(run=RUN))
    later = Run(RUN.batch, RUN.instance, "b" * 32)
    await sink.open_batch(later)
    assert sink.table is None
    with pytest.raises(SinkError, match="belongs to no open run"):
        await sink.write_chunk(chunk(run=RUN))
    with pytest.raises(SinkError, match="is void"):
        await sink.open_batch(RUN)


async def test_the_memory_sink_misses_a_chunk_in_the_middle() -> None:
    sink = MemoryBatchSink()
    await sink.open_batch(RUN)
    await sink.write_chunk(chunk(first=1, run=RUN))
    await sink.write_chunk(chunk(first=5, run=RUN))
    with pytest.raises(SinkError, match="lacks offsets 3 to 4"):
        await sink.finalize_instance(RUN, InstanceRange("tid", 0, 0, 0, 7, True))
