"""The sink wrapper retries: how long, what is told, which attempt is next, and what stops it."""

from __future__ import annotations

import asyncio
import errno

import pytest
from structlog.testing import capture_logs

from millstream.errors import (
    AttemptExhaustedError,
    RetryableSinkError,
    SinkError,
)
from schemas.chunk import Chunk, Receipt
from sinks.memory import MemoryBatchSink, MemorySink
from sinks.wrapper import RETRY_INITIAL, RETRY_MAX, SinkGroup
from tests.support.waiting import until
from tests.unit.sinks.chunks import RUN, WHERE, chunk, counted, quick


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


async def test_after_the_retry_timeout_the_last_error_becomes_a_sink_error_that_names_sink_and_call(
    slept: list[float],
) -> None:  # RU-69
    sink = MemorySink("dead")
    sink.fail("write_chunk", *(RetryableSinkError(f"refused {n}") for n in range(10_000)))
    with pytest.raises(
        SinkError, match=r"sink dead: write_chunk has failed for .*SINK_RETRY_TIMEOUT.*refused"
    ) as raised:
        await SinkGroup([sink], 20, retry_jitter=0).write(chunk())
    assert isinstance(raised.value.__cause__, RetryableSinkError)
    assert slept == [1, 2, 4, 8, 10]  # the next look at the clock is behind the 20 seconds
    assert len(sink.calls) == 6


async def test_asking_whether_the_sink_has_it_is_retried_too() -> None:
    sink = MemorySink()
    sink.fail("have", RetryableSinkError("away"))
    await quick(sink).write(chunk(replayed=True))
    assert sink.calls == ["have", "have", "write_chunk"]


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
    group = SinkGroup([sink], retry_initial=3600, retry_max=3600)  # would wait an hour
    writing = asyncio.create_task(group.write(chunk(topic="cancelled")))
    await until(lambda: group.retrying, 5, "the first retry")
    writing.cancel()
    async with asyncio.timeout(60):
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
