"""The sink wrapper: who retries, what is counted, what passes at once."""

from __future__ import annotations

import asyncio
import errno

import pyarrow as pa
import pytest
from blockbuster import BlockBuster
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from millstream.errors import (
    AttemptExhaustedError,
    BatchRefusedError,
    IdentityMismatchError,
    RetryableSinkError,
    SinkError,
)
from schemas.batch import Batch, Run
from schemas.chunk import Chunk, ChunkId, Receipt
from sinks.base import BatchSink, InstanceRange, Sink
from sinks.memory import MemoryBatchSink, MemorySink
from sinks.wrapper import RETRY_INITIAL, RETRY_MAX, SinkGroup
from tests.support.waiting import until

RUN = Run(Batch("prod", 1_691_999_696_123_456_789), "10.0.0.1:6379", "a" * 32)
TEN = pa.table({"n": list(range(10))})
WHERE = InstanceRange("tid", 0, 0, begin=0, done=3, exclusive=True)


@pytest.fixture(autouse=True)
def _unblocked(no_blocking: BlockBuster) -> None:
    """The wrapper runs on the event loop: it must not block it."""


def chunk(
    first: int = 1,
    rows: int = 2,
    *,
    run: Run | None = None,
    topic: str = "orders",
    partition: int = 0,
    crc: int = 0,
    replayed: bool = False,
) -> Chunk:
    identity = ChunkId(topic, "tid", 0, partition, first, first + rows - 1, crc)
    return Chunk(identity, TEN.slice(0, rows), run, replayed)


def quick(*sinks: Sink, timeout: float | None = None) -> SinkGroup:
    return SinkGroup(sinks, timeout, retry_initial=0.001, retry_max=0.002, retry_jitter=0)


def counted(name: str, **labels: str) -> float:
    for family in REGISTRY.restricted_registry([name]).collect():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return 0.0


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock jumps: sleeping takes no time, and the lengths of the sleeps are on record."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("stamina._core._smart_sleep", sleep)
    return slept


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


async def test_a_retryable_error_is_retried_with_backoff_of_one_second_doubling_to_ten(slept: list[float]) -> None:
    sink = MemorySink("slow")
    sink.fail("write_chunk", *(RetryableSinkError(f"no {n}") for n in range(7)))
    await SinkGroup([sink]).write(chunk())  # RU-33, RU-73: the real numbers
    assert (RETRY_INITIAL, RETRY_MAX) == (1, 10)
    for wait, least in zip(slept, [1, 2, 4, 8, 10, 10, 10], strict=True):
        assert least <= wait <= min(10, least + 1)
    assert sink.calls == ["write_chunk"] * 8


@pytest.mark.parametrize("after", [False, True])
async def test_a_write_that_failed_before_or_after_its_work_leaves_the_rows_once(after: bool) -> None:  # T1, T32
    sink = MemorySink("twice")
    sink.fail("write_chunk", RetryableSinkError("connection lost"), after=after)
    await quick(sink).write(chunk())
    assert sink.table == chunk().records


@pytest.mark.parametrize("operation", ["write_chunk", "finalize_instance", "finalize_batch"])
async def test_each_retry_is_a_warning_named_after_the_call_with_the_chain_of_errors(operation: str) -> None:
    sink = MemoryBatchSink("m")
    group = quick(sink)
    await group.open_batch(RUN)
    error = RetryableSinkError("server is away")
    error.__cause__ = ConnectionRefusedError("port 8123 of http://u:hunter22@h")
    sink.fail(operation, error)
    with capture_logs() as logs:
        await group.write(chunk(run=RUN))
        await group.finalize_instance(RUN, WHERE)
        await group.finalize_batch(RUN.batch, {RUN.instance: (RUN, WHERE)})
    (entry,) = [entry for entry in logs if entry["event"].endswith("_retry")]  # RU-34, RU-35, RU-58
    assert entry["event"] == f"{operation}_retry"
    assert entry["log_level"] == "warning"
    assert entry["error_chain"] == [
        "RetryableSinkError: server is away",
        "ConnectionRefusedError: port 8123 of http://u:***@h",
    ]  # RU-59, T42
    assert entry["cluster"] == "prod"
    assert next(reversed([k for k in entry if k not in ("event", "log_level")])) == "description"


async def test_only_retryable_errors_are_retried_a_full_disk_is_not() -> None:  # T43
    sink = MemorySink("disk")
    full = SinkError("/data/x.parquet: instance 10.0.0.1:6379: No space left on device")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    sink.fail("write_chunk", full)
    with pytest.raises(SinkError) as raised:
        await quick(sink).write(chunk())
    assert raised.value is full
    assert sink.calls == ["write_chunk"]


async def test_an_error_nobody_expected_passes_as_it_is() -> None:
    sink = MemorySink("odd")
    sink.fail("write_chunk", ZeroDivisionError("?"))
    with pytest.raises(ZeroDivisionError):
        await quick(sink, MemorySink("other")).write(chunk())


async def test_after_the_retry_timeout_the_last_error_becomes_a_sink_error_that_names_sink_and_call() -> None:  # RU-69
    sink = MemorySink("dead")
    sink.fail("write_chunk", *(RetryableSinkError(f"refused {n}") for n in range(10_000)))
    with pytest.raises(
        SinkError, match=r"sink dead: write_chunk has failed for .*SINK_RETRY_TIMEOUT.*refused"
    ) as raised:
        await quick(sink, timeout=0.05).write(chunk())
    assert isinstance(raised.value.__cause__, RetryableSinkError)
    assert len(sink.calls) > 2


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


async def test_asking_whether_the_sink_has_it_is_retried_too() -> None:
    sink = MemorySink()
    sink.fail("have", RetryableSinkError("away"))
    await quick(sink).write(chunk(replayed=True))
    assert sink.calls == ["have", "have", "write_chunk"]


async def test_another_chunk_under_the_same_identity_stops_the_write() -> None:  # hole b
    sink = MemorySink()
    await quick(sink).write(chunk(crc=1))
    with pytest.raises(IdentityMismatchError, match="crc 00000001"):
        await quick(sink).write(chunk(crc=2, replayed=True))


class Exhausted(MemorySink):
    """Says that the attempt is used up until it is offered one of at least `enough`."""

    def __init__(self, name: str, enough: int) -> None:
        super().__init__(name)
        self.enough, self.attempts = enough, list[int]()

    async def write_chunk(self, chunk: Chunk) -> Receipt:
        self.attempts.append(chunk.id.attempt)
        if chunk.id.attempt < self.enough:
            raise AttemptExhaustedError(f"token {chunk.id.token} acknowledged, 0 of {chunk.rows} rows")
        return await super().write_chunk(chunk)


class Engine:
    """Raises attempts as the engine does, and counts."""

    def __init__(self, chunk: Chunk, step: int = 1) -> None:
        self.chunk, self.step, self.raised = chunk, step, 0

    async def raise_attempt(self) -> Chunk:
        await asyncio.sleep(0)
        self.raised += 1
        self.chunk = self.chunk.at_attempt(self.chunk.id.attempt + self.step)
        return self.chunk


async def test_a_used_up_attempt_is_raised_by_the_engine_and_the_sink_is_asked_again() -> None:  # hole a
    sink, engine = Exhausted("ch", enough=2), Engine(chunk())
    receipts = await quick(sink).write(engine.chunk, engine.raise_attempt)
    assert sink.attempts == [0, 1, 2]
    assert engine.raised == 2
    assert receipts[0].rows == 2


async def test_two_sinks_that_ask_for_the_same_attempt_raise_it_once() -> None:
    a, b, engine = Exhausted("a", enough=1), Exhausted("b", enough=1), Engine(chunk())
    await quick(a, b).write(engine.chunk, engine.raise_attempt)
    assert engine.raised == 1
    assert a.attempts == b.attempts == [0, 1]


async def test_without_an_engine_a_used_up_attempt_is_an_error() -> None:
    with pytest.raises(SinkError, match=r"attempt 0 of chunk tid-0-0-.* is used up, and nobody here can raise it"):
        await quick(Exhausted("ch", enough=1)).write(chunk())


@pytest.mark.parametrize(("step", "text"), [(0, "was not raised above 0"), (1, "it was raised 10 times")])
async def test_raising_attempts_cannot_go_on_for_ever(step: int, text: str) -> None:
    engine = Engine(chunk(), step)
    with pytest.raises(SinkError, match=text):
        await quick(Exhausted("ch", enough=1000)).write(engine.chunk, engine.raise_attempt)


async def test_what_the_engine_raises_while_raising_the_attempt_passes_as_it_is() -> None:
    class FencedError(Exception):
        pass

    async def fenced() -> Chunk:
        raise FencedError

    with pytest.raises(FencedError):
        await quick(Exhausted("ch", enough=1)).write(chunk(), fenced)


async def test_while_one_partition_is_retried_it_counts_as_paused_and_another_goes_on() -> None:
    class Down(MemorySink):
        up = False

        async def write_chunk(self, chunk: Chunk) -> Receipt:
            if not self.up and chunk.id.partition == 0:
                raise RetryableSinkError("down")
            return await super().write_chunk(chunk)

    sink = Down("a")
    group = quick(sink, MemorySink("b"))
    writing = asyncio.create_task(group.write(chunk(topic="paused")))
    await until(lambda: group.retrying, 5, "the first retry")
    assert group.retrying == {("paused", 0)}
    assert counted("millstream_paused_partitions", stream="paused") == 1
    await group.write(chunk(topic="paused", partition=1))
    sink.up = True
    await writing
    assert not group.retrying
    assert counted("millstream_paused_partitions", stream="paused") == 0


async def test_cancelling_passes_at_once_and_leaves_nothing_paused() -> None:
    sink = MemorySink("dead")
    sink.fail("write_chunk", *(RetryableSinkError("no") for _ in range(10)))
    group = SinkGroup([sink])  # would wait a second
    writing = asyncio.create_task(group.write(chunk(topic="cancelled")))
    await until(lambda: group.retrying, 5, "the first retry")
    writing.cancel()
    async with asyncio.timeout(0.5):
        with pytest.raises(asyncio.CancelledError):
            await writing
    assert not group.retrying
    assert counted("millstream_paused_partitions", stream="cancelled") == 0


async def test_when_one_sink_fails_for_good_the_other_stops_retrying() -> None:
    waits_for_ever, broken = MemorySink("waits"), MemorySink("broken")
    waits_for_ever.fail("write_chunk", *(RetryableSinkError("no") for _ in range(100_000)))
    broken.fail("write_chunk", SinkError("no permission"))
    async with asyncio.timeout(5):
        with pytest.raises(SinkError, match="no permission"):
            await quick(waits_for_ever, broken).write(chunk())


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
