"""What a worker is doing, for metrics, health checks and the status page. Looks on; changes nothing.

Two kinds of work: `run` asks Kafka for the ends of the logs now and then, and looks at tables; everything else reads
the engine's own variables when somebody asks, in whichever thread asks. Nothing here runs in the event loop for longer
than a few lines, nor in the threads of sinks and commits, which a rebalance waits for.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from confluent_kafka import IsolationLevel
from confluent_kafka.admin import OffsetSpec
from prometheus_client import Gauge

from millstream import metrics
from millstream.cluster import TP
from millstream.errors import BrokerError
from millstream.logs import get_logger
from millstream.threads import in_thread

if TYPE_CHECKING:
    from streams.engine.app import App
    from streams.engine.chunk import Chunk
    from streams.engine.consumer import Consumer
    from streams.engine.partition import PartitionState
    from streams.engine.task import Task
    from tables.store import Store

Section = Callable[[], list[dict[str, Any]]]

TICK = 0.5
"""Seconds between the ticks that measure the event loop's delay."""

log = get_logger(__name__)


class Reason(NamedTuple):
    """Why the worker is not ready."""

    reason: str
    """One of metrics.REASONS."""
    text: str


@dataclass(frozen=True, slots=True)
class PartitionView:
    """One partition as of now."""

    topic: str
    partition: int
    stream: str
    state: str
    """One of metrics.PARTITION_STATES."""
    seconds: float
    """Since it has been in that state; of `reading` since the first record that waits."""
    offset: int
    """The committed one."""
    end: int | None
    """Of the log, as of the last look; None before it."""
    lag: int
    lag_seconds: float
    chunk: dict[str, Any] | None
    replays: int
    buffered: int
    """Records read and not in a chunk."""


class Observer:
    """Looks on at one worker."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._lock = threading.RLock()
        self._ends: dict[TP, int] = {}
        self._fetched: dict[TP, int] = {}
        """Positions of the fetcher in partitions that hold nothing unread: markers and aborted records lie behind."""
        self._behind: dict[TP, tuple[int, float]] = {}
        """Committed offset of a partition that lags, and since when it has been there."""
        self._tables: list[dict[str, Any]] = []
        self._series: dict[Gauge, set[tuple[str, ...]]] = defaultdict(set)
        self.sections: dict[str, Section] = {}
        """More to look at, by name: called in a thread, may block; sets its own metrics."""
        self.found: dict[str, list[dict[str, Any]]] = {}
        """What the sections gave at the last look."""
        self.started = time.time()

    @property
    def _consumer(self) -> Consumer | None:
        consumer: Consumer | None = self._app._consumer
        return consumer

    # ------------------------------------------------------------------ now and then
    async def run(self) -> None:
        """Until cancelled."""
        ticking = asyncio.create_task(_tick())
        try:
            while True:
                try:
                    await self._look()
                except BrokerError as exc:
                    log.debug("lag_unknown", description=f"{exc}; it is asked for again")
                except Exception as exc:  # who only looks on must not end the worker
                    log.warning("observer_failed", exc_info=exc, description="metrics may be old; it looks again")
                await asyncio.sleep(self._app.settings.metrics_interval)
        finally:
            ticking.cancel()

    async def _look(self) -> None:
        # Made in the event loop, to which Faust binds a store when it is first asked for.
        stores = {name: table.data for name, table in self._app.tables.items()}
        await in_thread(lambda: self._look_inside(stores))
        consumer = self._consumer
        if consumer is None or not (parts := dict(consumer.reading.parts)):
            return
        idle = {tp for tp, part in parts.items() if not part.buffered_records and part.position.plan is None}
        self._fetched = await consumer.positions(idle) if idle else {}
        committed = IsolationLevel.READ_COMMITTED  # what an open transaction holds cannot be read yet
        latest = OffsetSpec.latest()
        self._ends = await in_thread(lambda: self._app.cluster.offsets(parts, latest, committed))
        metrics.LAG_LOOK.set_to_current_time()

    def _look_inside(self, stores: Mapping[str, Store]) -> None:
        tables = []
        for name, store in stores.items():
            keys, size = store.size()
            metrics.TABLE_KEYS.labels(name).set(keys)
            metrics.TABLE_BYTES.labels(name).set(size)
            tables.append({"table": name, "partitions": len(store.partitions), "keys": keys, "bytes": size})
        self._tables = tables
        self.found = {name: section() for name, section in self.sections.items()}

    # ------------------------------------------------------------------ when asked, in any thread
    def partitions(self) -> list[PartitionView]:
        """All partitions of the assignment, once it is loaded."""
        consumer = self._consumer
        if consumer is None:
            return []
        now, clock = time.monotonic(), time.time()
        retrying = {place for group in self._app.sink_groups for place in group.retrying}
        with self._lock:
            held = [(t, tp, part) for t in tuple(consumer.cycle.tasks.values()) for tp, part in tuple(t.parts.items())]
            found = [self._view(task, tp, part, retrying, now, clock) for task, tp, part in held]
            here = {tp for _, tp, _ in held}
            self._behind = {tp: behind for tp, behind in self._behind.items() if tp in here}
        return found

    def _view(
        self, task: Task, tp: TP, part: PartitionState, retrying: set[tuple[str, int]], now: float, clock: float
    ) -> PartitionView:
        opened = task.open
        chunk = opened[1] if opened is not None and opened[0] == tp else None
        position, oldest = part.position, part.oldest_ms
        if tp in task.parked:
            state, since = "parked", now
        elif chunk is not None:
            state, since = "written" if chunk.done.is_set() else "writing", chunk.since
            state = "retrying" if state == "writing" and tp in retrying else state
            oldest = chunk.records[0].timestamp if len(chunk.records) else oldest
        elif position.plan is not None:
            state, since = "planned", now
        else:
            state, since = "reading", part.since if part.buffered_records else now
        lag, seconds = self._lag(tp, position.offset, oldest, now, clock)
        return PartitionView(
            tp.topic, tp.partition, metrics.stream_label(tp.topic), state, max(0.0, now - since), position.offset,
            self._ends.get(tp), lag, seconds, _chunk(chunk), position.plan.replays if position.plan else 0,
            part.buffered_records,
        )  # fmt: skip

    def _lag(self, tp: TP, offset: int, oldest_ms: int | None, now: float, clock: float) -> tuple[int, float]:
        """Records, and seconds: the age of the oldest one not committed, by its timestamp if it was read already."""
        records = max(0, self._ends.get(tp, 0) - max(offset, self._fetched.get(tp, 0)))
        if not records:
            self._behind.pop(tp, None)
            return 0, 0.0
        at, since = self._behind.get(tp, (-1, now))
        if at != offset:
            since = now
        self._behind[tp] = offset, since
        return records, max(0.0, clock - oldest_ms / 1000 if oldest_ms and oldest_ms > 0 else now - since)

    def not_live(self) -> str:
        """Why the process should be killed, or nothing. That it is asked in the event loop shows that this one runs."""
        consumer, s = self._consumer, self._app.settings
        if consumer is None or not consumer.started:
            return ""
        bound, now = s.session_timeout + s.rebalance_timeout, time.monotonic()
        if (silent := now - consumer.attended) > bound:
            return f"the consumer's thread has not answered for {silent:.0f} s"
        reads = consumer.flow_active and consumer.cycle.member is not None
        if reads and (silent := now - consumer.looked) > bound:
            return f"the loop that reads from Kafka has stood still for {silent:.0f} s"
        return ""

    def not_ready(self, views: Sequence[PartitionView] | None = None) -> list[Reason]:
        """Why no work gets done here, or not all of it; nothing: the worker is ready. `views`: those of now."""
        consumer, s = self._consumer, self._app.settings
        if self._app.should_stop:
            return [Reason("stopping", "the worker is being stopped")]
        if consumer is None or (consumer.assigned is None and not consumer.cycle.epoch):
            return [Reason("starting", "no assignment has come yet")]
        found = []
        if consumer.cycle.draining:
            found.append(Reason("stopping", "the worker is being stopped"))
        if consumer.lost_since is not None:
            lost = time.monotonic() - consumer.lost_since
            found.append(Reason("fenced", f"the group moved on {lost:.0f} s ago; waiting for the next assignment"))
        elif consumer.assigned is None:
            found.append(Reason("restoring", "the group is rebalancing"))
        elif consumer.assigned and consumer.cycle.member is None:
            found.append(Reason("restoring", self._restoring()))
        if silent := self.not_live():
            found.append(Reason("stalled", silent))
        for v in self.partitions() if views is None else views:
            where = f"{v.topic}-{v.partition}"
            if v.state == "parked":
                found.append(Reason("parked", f"{where} at offset {v.offset}: parked after {v.replays} replays"))
            elif v.chunk is not None and v.seconds > s.ready_stalled:
                found.append(Reason("stalled", f"{where} at offset {v.offset}: {v.state} for {v.seconds:.0f} s"))
        for group in self._app.sink_groups:
            for sink, seconds in group.failing().items():
                if seconds > s.ready_sink_failing:
                    found.append(Reason("sink", f"{sink} has been failing for {seconds:.0f} s: {_last(group, sink)}"))
        return found

    def _restoring(self) -> str:
        progress = self._app.recovery.progress.values()
        left = sum(max(0, p.end - p.at) for p in progress)
        tables = ", ".join(sorted({p.table for p in progress if p.at < p.end}))
        return f"{left:,} changelog records of {tables} are left to be loaded" if left else "loading an assignment"

    def refresh(self) -> None:
        """Set the gauges that tell the state of now."""
        with self._lock:
            views = self.partitions()
            reasons = {r.reason for r in self.not_ready(views)}
            metrics.READY.set(not reasons)
            for reason in metrics.REASONS:
                metrics.NOT_READY.labels(reason).set(reason in reasons)
            by_stream: dict[tuple[str, ...], list[PartitionView]] = defaultdict(list)
            for v in views:
                by_stream[v.stream,].append(v)
            fixed = {label: vs for label, vs in by_stream.items() if self._numbered(vs)}
            for labels in by_stream:  # which the engine itself counts; here so that they are 0 before the first one
                for gauge in (metrics.PAUSED_PARTITIONS, metrics.PARKED_PARTITIONS):
                    gauge.labels(*labels)
            self._set(metrics.ASSIGNED_PARTITIONS, {k: len(vs) for k, vs in by_stream.items()})
            self._set(metrics.LAG_RECORDS, {k: sum(v.lag for v in vs) for k, vs in by_stream.items()})
            self._set(metrics.LAG_SECONDS, {k: max(v.lag_seconds for v in vs) for k, vs in by_stream.items()})
            states = {(*k, s): sum(v.state == s for v in vs) for k, vs in by_stream.items()
                      for s in metrics.PARTITION_STATES}  # fmt: skip
            self._set(metrics.PARTITIONS, states)
            numbered = {(*k, str(v.partition)): v for k, vs in fixed.items() for v in vs}
            self._set(metrics.PARTITION_LAG_RECORDS, {k: v.lag for k, v in numbered.items()}, forget=True)
            self._set(metrics.PARTITION_LAG_SECONDS, {k: v.lag_seconds for k, v in numbered.items()}, forget=True)
            failing: dict[tuple[str, ...], float] = defaultdict(float)
            for group in self._app.sink_groups:
                for sink, seconds in group.failing().items():
                    failing[sink,] = max(failing[sink,], seconds)
            self._set(metrics.SINK_FAILING, failing)

    def _numbered(self, views: list[PartitionView]) -> bool:
        """Whether partition numbers name partitions: not where a stream has many topics (T23)."""
        source = self._app.topology.source_of(views[0].topic)
        fixed = source is not None and source.pattern is None and len({v.topic for v in views}) == 1
        return fixed and len(views) <= metrics.PARTITION_SERIES

    def _set(self, gauge: Gauge, values: Mapping[tuple[str, ...], float], *, forget: bool = False) -> None:
        """`forget`: what is no longer there has moved to another worker; its series ends here. Else it is 0."""
        for labels, value in values.items():
            gauge.labels(*labels).set(value)
        for labels in self._series[gauge] - values.keys():
            if forget:
                gauge.remove(*labels)
            else:
                gauge.labels(*labels).set(0)
        self._series[gauge] = set(values) | (set() if forget else self._series[gauge])

    # ------------------------------------------------------------------ the status, as JSON would have it
    def tables(self) -> list[dict[str, Any]]:
        """Each table, as of the last look, and what is left to be loaded of it now."""
        left: dict[str, int] = defaultdict(int)
        for p in self._app.recovery.progress.values():
            left[p.table] += max(0, p.end - p.at)
        return [t | {"restore_left": left.get(t["table"], 0)} for t in self._tables]

    def sinks(self) -> list[dict[str, Any]]:
        """Each sink of each group."""
        found = []
        for group in self._app.sink_groups:
            failing = group.failing()
            for sink in group.sinks:
                error = group.last_errors.get(sink.name)
                found.append({
                    "sink": sink.name, "failing_seconds": round(failing[sink.name], 1),
                    "last_error": None if error is None else {
                        "at": error.at, "operation": error.operation, "error": error.error, **error.fields,
                    },
                })  # fmt: skip
        return found


def _last(group: Any, sink: str) -> str:
    error = group.last_errors.get(sink)
    return error.error if error is not None else ""


def _chunk(chunk: Chunk | None) -> dict[str, Any] | None:
    if chunk is None:
        return None
    return {
        "first": chunk.id.first, "last": chunk.id.last, "records": len(chunk.records), "bytes": chunk.nbytes,
        "attempt": chunk.id.attempt, "replayed": chunk.replayed,
    }  # fmt: skip


async def _tick() -> None:
    while True:
        due = time.monotonic() + TICK
        await asyncio.sleep(TICK)
        metrics.LOOP_DELAY.observe(max(0.0, time.monotonic() - due))
