"""The one wrapper around all sinks: retry, metrics and the answers to what a sink may say. Sinks hold none of these."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import stamina
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from millstream import metrics, tracing
from millstream.errors import AttemptExhaustedError, RetryableSinkError, SinkError
from millstream.logs import error_chain, get_logger
from schemas.batch import Batch, Run
from schemas.chunk import Chunk, Receipt
from sinks.base import BatchSink, InstanceRange, Sink

S = TypeVar("S", bound=Sink)
T = TypeVar("T")
RaiseAttempt = Callable[[], Awaitable[Chunk]]
"""Raises the chunk's attempt in a fenced transaction and gives the chunk under it (hole a). The engine's part."""

RETRY_INITIAL = 1.0
"""Seconds before the first retry, doubled each time (RU-73); up to one second of jitter comes on top."""
RETRY_MAX = 10.0
"""Seconds between retries at most (RU-73)."""
MAX_RAISES = 10
"""Attempts of one chunk in one life. Each follows an acknowledged insert that left rows out: ten are no accident."""

ERROR_CHARS = 1000
"""Of an error, where it is kept to be looked at."""

log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Call:
    """One sink call in progress: what the retry hook has to know about it, and who looks at the worker."""

    sink: str
    operation: str
    fields: dict[str, object]
    on_retry: Callable[[], None] = field(default=lambda: None)
    failing_since: float | None = None
    """By the monotonic clock; None while it has not failed."""


@dataclass(frozen=True, slots=True)
class LastError:
    """What a sink last answered that was no success."""

    at: float
    """Unix seconds."""
    operation: str
    error: str
    fields: Mapping[str, object]


_call: ContextVar[_Call] = ContextVar("sink_call")


def _on_retry(details: RetryDetails) -> None:
    """Stamina has scheduled a retry: warn and count (RU-33…35, RU-58, RU-59)."""
    call = _call.get(None)
    if call is None:
        return
    metrics.SINK_RETRIES.labels(call.sink, call.operation).inc()
    log.warning(
        f"{call.operation}_retry",
        sink=call.sink,
        **call.fields,
        retry=details.retry_num,
        wait_seconds=round(details.wait_for, 1),
        error_chain=error_chain(details.caused_by),
        description="the sink may accept it later; its partition waits, others go on",
    )
    call.on_retry()


set_on_retry_hooks([_on_retry])  # In place of stamina's own, which would log and count the same once more.


class SinkGroup:
    """All sinks of a stream as one. A call goes to every sink at the same time and returns when all have done it.

    Only RetryableSinkError is retried, for `retry_timeout` seconds (None: for ever), then it becomes a SinkError; all
    else passes at once, cancellation too. When one sink fails for good, the calls to the others are cancelled.
    """

    def __init__(
        self,
        sinks: Iterable[Sink],
        retry_timeout: float | None = None,
        *,
        namespace: str = "",
        retry_initial: float = RETRY_INITIAL,
        retry_max: float = RETRY_MAX,
        retry_jitter: float = 1.0,
    ) -> None:
        self.sinks = tuple(sinks)
        names = Counter(sink.name for sink in self.sinks)
        if doubled := [name for name, n in names.items() if n > 1]:
            raise ValueError(f"two sinks have the same name: {', '.join(doubled)}")
        self._timeout, self._namespace = retry_timeout, namespace
        self._initial, self._max, self._jitter = retry_initial, retry_max, retry_jitter
        self._retrying: Counter[tuple[str, int]] = Counter()
        self._calls: set[_Call] = set()
        self.last_errors: dict[str, LastError] = {}
        """By the sink's name."""

    @property
    def retrying(self) -> frozenset[tuple[str, int]]:
        """(topic, partition) of chunks that a sink is made to try again right now: those partitions stand still."""
        return frozenset(self._retrying)

    def failing(self) -> dict[str, float]:
        """Seconds for which the longest failing call of each sink has been retried; 0: none is. From any thread."""
        now, found = time.monotonic(), {sink.name: 0.0 for sink in self.sinks}
        for call in tuple(self._calls):
            if call.failing_since is not None:
                found[call.sink] = max(found[call.sink], now - call.failing_since)
        return found

    async def open(self) -> None:
        """Open all sinks; if one cannot be opened the others are closed again."""
        try:
            await self._each(self.sinks, lambda sink: self._attempt(_Call(sink.name, "open", {}), sink.open))
        except BaseException as e:
            for other in await self._close():  # what went wrong first is told, or the cancellation passed on
                e.add_note(f"closing the sinks failed too: {type(other).__name__}: {other}")
            raise

    async def close(self) -> None:
        """Close every sink, also when one fails at it; that error is raised when all are closed."""
        if errors := await self._close():
            raise errors[0]

    async def _close(self) -> list[BaseException]:
        done = await asyncio.gather(*(sink.close() for sink in self.sinks), return_exceptions=True)
        return [e for e in done if e is not None]

    async def write(self, chunk: Chunk, raise_attempt: RaiseAttempt | None = None) -> list[Receipt]:
        """Make the chunk durable in every sink; the receipts, in the order of the sinks.

        A replayed chunk is asked for first (`have`), and only written to sinks that lack it. Where a sink says that
        the chunk's attempt is used up, `raise_attempt` is awaited once for all sinks and the sink is asked again.
        """
        attempt = _Attempt(chunk, raise_attempt)
        return await self._each(self.sinks, lambda sink: self._write(sink, chunk, attempt))

    async def open_batch(self, run: Run) -> None:
        """A run begins, in every sink that publishes batches. Raises BatchRefusedError."""
        await self._each(self._batch_sinks, lambda s: self._verb(s, "open_batch", run, lambda: s.open_batch(run)))

    async def finalize_instance(self, run: Run, where: InstanceRange) -> dict[str, int]:
        """Make the instance ready in every sink: sink -> rows. Raises SinkError if they disagree."""
        rows = await self._each(
            self._batch_sinks,
            lambda s: self._verb(s, "finalize_instance", run, lambda: s.finalize_instance(run, where)),
        )
        counts = {sink.name: n for sink, n in zip(self._batch_sinks, rows, strict=True)}
        if len(set(rows)) > 1:
            told = ", ".join(f"{name}: {n}" for name, n in counts.items())
            raise SinkError(
                f"the sinks hold different numbers of rows of instance {run.instance!r}, batch {run.batch.key}, run "
                f"{run.run_id} ({told}). Nothing was published; compare them, then abort the batch and feed it again"
            )
        return counts

    async def finalize_batch(self, batch: Batch, runs: dict[str, tuple[Run, InstanceRange]]) -> None:
        """Publish the batch in every sink, one after the other: what one refuses, those behind it never show."""
        for sink in self._batch_sinks:
            await self._verb(sink, "finalize_batch", batch, partial(sink.finalize_batch, batch, runs))

    async def abort_run(self, run: Run) -> None:
        """The run is void in every sink."""
        await self._each(self._batch_sinks, lambda s: self._verb(s, "abort_run", run, lambda: s.abort_run(run)))

    @property
    def _batch_sinks(self) -> list[BatchSink]:
        return [sink for sink in self.sinks if isinstance(sink, BatchSink)]

    async def _write(self, sink: Sink, chunk: Chunk, attempt: _Attempt) -> Receipt:
        fields = _chunk_fields(chunk)
        with self._standing_still(chunk) as on_retry:
            if chunk.replayed:
                found = await self._attempt(_Call(sink.name, "have", fields, on_retry), lambda: sink.have(chunk))
                if found is not None:
                    metrics.SINK_SKIPPED.labels(sink.name).inc()
                    return found
            while True:
                current = attempt.chunk
                try:
                    call = _Call(sink.name, "write_chunk", fields, on_retry)
                    receipt = await self._attempt(call, partial(sink.write_chunk, current))
                except AttemptExhaustedError as e:
                    exhausted = e
                else:
                    metrics.SINK_ROWS.labels(sink.name).inc(receipt.rows)
                    metrics.SINK_BYTES.labels(sink.name).inc(receipt.bytes)
                    return receipt
                await attempt.raise_beyond(current, sink.name, exhausted)

    @contextmanager
    def _standing_still(self, chunk: Chunk) -> Iterator[Callable[[], None]]:
        """Gives what to call at each retry; from the first one to the end the chunk's partition counts as paused."""
        place = (chunk.id.topic, chunk.id.partition)
        gauge = metrics.PAUSED_PARTITIONS.labels(metrics.stream_label(chunk.id.topic, self._namespace))
        counted = False

        def on_retry() -> None:
            nonlocal counted
            if not counted:
                counted = True
                self._retrying[place] += 1
                if self._retrying[place] == 1:
                    gauge.inc()

        try:
            yield on_retry
        finally:
            if counted:
                self._retrying[place] -= 1
                if not self._retrying[place]:
                    del self._retrying[place]
                    gauge.dec()

    async def _verb(self, sink: Sink, operation: str, what: Run | Batch, do: Callable[[], Awaitable[T]]) -> T:
        batch = what.batch if isinstance(what, Run) else what
        fields: dict[str, object] = {"cluster": batch.cluster, "batch": batch.rfc3339}
        if isinstance(what, Run):
            fields |= {"instance": what.instance, "run": what.run_id}
        return await self._attempt(_Call(sink.name, operation, fields), do)

    async def _attempt(self, call: _Call, do: Callable[[], Awaitable[T]]) -> T:
        """`do`, again while it raises RetryableSinkError and the time allows it."""
        _call.set(call)
        began = time.monotonic()
        with tracing.span(f"{call.sink} {call.operation}"), self._under_way(call):
            result = await self._retried(call, do, began)
        metrics.SINK_SECONDS.labels(call.sink, call.operation).observe(time.monotonic() - began)
        return result

    @contextmanager
    def _under_way(self, call: _Call) -> Iterator[None]:
        gauge = metrics.SINK_CALLS.labels(call.sink)
        gauge.inc()
        self._calls.add(call)
        try:
            yield
        finally:
            self._calls.discard(call)
            gauge.dec()

    async def _retried(self, call: _Call, do: Callable[[], Awaitable[T]], began: float) -> T:
        try:
            async for attempt in stamina.retry_context(
                on=RetryableSinkError,
                attempts=None,
                timeout=self._timeout,
                wait_initial=self._initial,
                wait_max=self._max,
                wait_jitter=self._jitter,
            ):
                with attempt:
                    try:
                        return await do()
                    except Exception as e:
                        metrics.SINK_ERRORS.labels(call.sink, type(e).__name__).inc()
                        self._note(call, e)
                        raise
        except RetryableSinkError as e:
            raise SinkError(
                f"sink {call.sink}: {call.operation} has failed for {time.monotonic() - began:.0f} s and is given up "
                f"(MILLSTREAM_SINK_RETRY_TIMEOUT): {e}"
            ) from e
        raise AssertionError("stamina gives up by raising")

    def _note(self, call: _Call, error: Exception) -> None:
        if call.failing_since is None:
            call.failing_since = time.monotonic()
        text = "; ".join(error_chain(error))[:ERROR_CHARS]
        self.last_errors[call.sink] = LastError(time.time(), call.operation, text, call.fields)

    async def _each(self, sinks: Iterable[S], do: Callable[[S], Coroutine[Any, Any, T]]) -> list[T]:
        """`do` for all sinks at the same time. The first error cancels the rest and is raised as it is."""
        failed: tuple[BaseException, ...]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(do(sink)) for sink in sinks]
        except BaseExceptionGroup as e:
            failed = e.exceptions
        else:
            return [task.result() for task in tasks]
        for other in failed[1:]:
            failed[0].add_note(f"another sink failed too: {type(other).__name__}: {other}")
        raise failed[0]


class _Attempt:
    """The chunk under the attempt that holds now, for all sinks of the group."""

    def __init__(self, chunk: Chunk, raise_attempt: RaiseAttempt | None) -> None:
        self.chunk = chunk
        self._raise, self._raised, self._lock = raise_attempt, 0, asyncio.Lock()

    async def raise_beyond(self, used_up: Chunk, sink: str, error: AttemptExhaustedError) -> None:
        """Afterwards `chunk` has a higher attempt than `used_up`: another sink's request may have raised it already."""
        async with self._lock:
            if self.chunk.id.attempt > used_up.id.attempt:
                return
            if self._raise is None or self._raised == MAX_RAISES:
                why = "nobody here can raise it" if self._raise is None else f"it was raised {MAX_RAISES} times"
                raise SinkError(
                    f"sink {sink}: attempt {used_up.id.attempt} of chunk {used_up.id} is used up, and {why}: {error}"
                ) from error
            raised = await self._raise()
            self._raised += 1
            if raised.id.attempt <= used_up.id.attempt:
                raise SinkError(f"the attempt of chunk {used_up.id} was not raised above {used_up.id.attempt}")
            metrics.ATTEMPTS_RAISED.labels(sink).inc()
            log.warning(
                "attempt_raised",
                sink=sink,
                **_chunk_fields(raised),
                attempt=raised.id.attempt,
                description="an acknowledged insert left rows out; writing under the next attempt",
            )
            self.chunk = raised


def _chunk_fields(chunk: Chunk) -> dict[str, object]:
    fields: dict[str, object] = {
        "topic": chunk.id.topic,
        "partition": chunk.id.partition,
        "first": chunk.id.first,
        "last": chunk.id.last,
    }
    if chunk.run is not None:
        fields |= {"cluster": chunk.run.batch.cluster, "batch": chunk.run.batch.rfc3339, "instance": chunk.run.instance}
    return fields
