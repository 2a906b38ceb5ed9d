"""The commit cycle: plan -> write -> commit, for all partitions of a worker in one transaction at a time.

Each round takes what is ready from every task: finished chunks (their table changes, output records and dead letters)
and the plans of the next ones, and puts it into one short transaction. Sinks write outside of it, between two rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from millstream import metrics, tracing
from millstream.cluster import TP
from millstream.failpoints import declare, failpoint
from millstream.logs import get_logger
from streams.engine.chunk import Chunk, Output
from streams.engine.dead_letters import dead_letter
from streams.engine.partition import Cut
from streams.engine.plan import Position
from streams.engine.recovery import TableLog
from streams.engine.task import EventMessage, Task
from streams.engine.topology import TaskKey
from streams.engine.transaction import ChangelogWrite, PartitionsLostError, Transaction
from tables.store import StorePosition

PLANNED = declare("cycle.planned", "plan committed, chunk not delivered")
WRITTEN = declare("cycle.written", "chunk written by all sinks, commit not begun")
APPLIED = declare("cycle.applied", "transaction committed and RocksDB written, next chunk not begun")

log = get_logger(__name__)


class Committer(Protocol):
    """What commits a transaction: the transactional producer, or for benchmarks one without transactions."""

    def commit(self, txn: Transaction, metadata: bytes) -> None:
        """Blocking."""


@dataclass(frozen=True, slots=True)
class Member:
    """This worker in the group, as of the last assignment."""

    generation: int
    metadata: bytes


class CommitCycle:
    """Owns the tasks of the current assignment and moves their positions."""

    def __init__(
        self,
        commit_thread: ThreadPoolExecutor,
        committer: Callable[[], Committer],
        tables_of: Callable[[TP], dict[str, TableLog]],
        ensure_topics: Callable[[set[str]], None],
        deliver_event: Callable[[EventMessage], Awaitable[None]],
        on_error: Callable[[BaseException], None],
        max_replays: int,
        plans: bool = True,
    ) -> None:
        self._thread, self._committer, self._tables_of = commit_thread, committer, tables_of
        self._ensure_topics, self._deliver_event, self._on_error = ensure_topics, deliver_event, on_error
        self._max_replays, self._plans = max_replays, plans
        self.tasks: dict[TaskKey, Task] = {}
        self.topic_ids: dict[str, str] = {}
        self.member: Member | None = None
        self.epoch = 0
        """Raised by every assignment and revocation: what began before it is void."""
        self.lock = asyncio.Lock()
        """Held during a round, RocksDB included."""
        self.wake = asyncio.Event()
        self._ending: set[asyncio.Task[None]] = set()
        self.draining = False
        """Set at shutdown: open chunks are finished, no new ones planned."""
        self.on_lost: Callable[[], None] = lambda: None

    # ------------------------------------------------------------------ assignment
    def begin(self, tasks: dict[TaskKey, Task], topic_ids: dict[str, str], member: Member) -> None:
        """Start on a loaded assignment."""
        self.tasks, self.topic_ids, self.member = tasks, topic_ids, member
        for task in tasks.values():
            for tp, part in task.parts.items():
                plan = part.position.plan
                if plan and plan.replays > self._max_replays:
                    task.parked.add(tp)
                    metrics.PARKED_PARTITIONS.labels(metrics.stream_label(tp.topic)).inc()
                    log.error(
                        "partition_parked",
                        topic=tp.topic,
                        partition=tp.partition,
                        first=plan.first,
                        last=plan.last,
                        replays=plan.replays,
                        description="this chunk ended its worker each time; other partitions go on. Look at its "
                        "records, mend agent or sink, then raise MILLSTREAM_MAX_REPLAYS and restart",
                    )
        self.wake.set()

    def void(self) -> set[asyncio.Task[None]]:
        """The assignment is over: abandon all open chunks. Returns all tasks, of earlier ones too, that still end."""
        self.epoch += 1
        self.member = None
        self._ending = {t for t in self._ending if not t.done()}
        for task in self.tasks.values():
            self._ending |= task.running
            task.abandon()
            for tp in task.parked:
                metrics.PARKED_PARTITIONS.labels(metrics.stream_label(tp.topic)).dec()
        self.tasks = {}
        return set(self._ending)

    @property
    def open_chunks(self) -> int:
        """Chunks that are planned and not committed."""
        return sum(1 for t in self.tasks.values() if t.open is not None)

    @property
    def open_bytes(self) -> int:
        """Decoded bytes of the open chunks' records."""
        return sum(t.open[1].nbytes for t in self.tasks.values() if t.open is not None)

    # ------------------------------------------------------------------ rounds
    async def run(self) -> None:
        """Round after round, until cancelled. Any error ends the worker."""
        while True:
            now = time.monotonic()
            due = min((t.due_in(now) for t in self.tasks.values() if not self.draining), default=float("inf"))
            if due > 0 and not self.wake.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.wake.wait(), min(due, 1.0))
            self.wake.clear()
            try:
                await self.round()
            except Exception as exc:  # noqa: BLE001 - an error of the commit is final (rule 11)
                self._on_error(exc)
                return

    async def round(self) -> None:
        """One commit cycle."""
        async with self.lock:
            member, now = self.member, time.monotonic()
            if member is None:
                return
            txn = Transaction()
            moved = txn.positions
            applies: list[tuple[TableLog, ChangelogWrite]] = []
            begin: list[tuple[Task, TP, Cut, bool]] = []
            finished: list[tuple[TP, Chunk]] = []
            answers: list[tuple[asyncio.Future[int], int]] = []
            for task in self.tasks.values():
                for item in self._ready(task, now, moved):
                    if isinstance(item, Chunk):
                        assert task.open is not None
                        finished.append(task.open)
                        self._collect(task.open[0], item, txn, applies)
                        task.open = None
                    elif isinstance(item, tuple):
                        begin.append((task, *item))
                    else:
                        answers.append((item, moved[task.open[0]].plan.attempt))  # type: ignore[index,union-attr]
            if not moved and not begin:
                return
            epoch = self.epoch
            if moved and not await self.commit(txn, applies, member, finished):
                return
            for future, attempt in answers:
                if not future.done():
                    future.set_result(attempt)
            if epoch != self.epoch:
                return
            for task, tp, cut, replayed in begin:
                self._start(task, tp, cut, member, replayed)

    def _ready(
        self, task: Task, now: float, moved: dict[TP, Position]
    ) -> Iterator[Chunk | tuple[TP, Cut, bool] | asyncio.Future[int]]:
        """What a task has for this round; positions that the transaction moves are put into `moved`."""
        if task.open is not None:
            tp, chunk = task.open
            part = task.parts[tp]
            if task.attempt_wanted is not None:
                assert part.position.plan is not None
                wanted, task.attempt_wanted = task.attempt_wanted, None
                moved[tp] = part.position = replace(part.position, plan=part.position.plan.raised())
                yield wanted
            if not chunk.done.is_set():
                return
            moved[tp] = part.position = replace(part.position, offset=chunk.id.last + 1, plan=None)
            yield chunk
        if (replay := task.to_replay(now)) is not None:
            yield (*replay, True)  # its plan is on record already: nothing to commit first
        elif not task.has_plan and not self.draining and (sealed := task.to_seal(now)) is not None:
            tp, cut = sealed
            part = task.parts[tp]
            if self._plans:
                moved[tp] = part.position = replace(part.position, plan=cut.plan())
            yield (tp, cut, False)

    def _collect(self, tp: TP, chunk: Chunk, txn: Transaction, applies: list[tuple[TableLog, ChangelogWrite]]) -> None:
        failpoint(WRITTEN)
        txn.outputs += _traced(chunk)
        txn.outputs += [dead_letter(chunk, r) for r in chunk.letters]
        tables = self._tables_of(tp)
        for name, changes in chunk.changes.items():
            if changes:
                write = ChangelogWrite(tables[name].changelog, tp.partition, changes.items())
                txn.changelogs.append(write)
                applies.append((tables[name], write))
        chunk.abandon()  # sealed: what a stray task of the agent does from here on is refused

    async def commit(
        self,
        txn: Transaction,
        applies: list[tuple[TableLog, ChangelogWrite]],
        member: Member,
        finished: list[tuple[TP, Chunk]],
    ) -> bool:
        """Commit in the commit thread; False if the group has moved on."""

        def commit() -> None:
            self._ensure_topics({o.topic for o in txn.outputs})
            self._committer().commit(txn, member.metadata)
            for table, write in applies:
                position = StorePosition(self.topic_ids[write.topic], write.next_offset, 0)
                table.store.apply(write.partition, write.changes, position)
            if finished:
                failpoint(APPLIED)

        try:
            about = tracing.contexts_of(chunk.trace for _, chunk in finished)
            with metrics.COMMIT_SECONDS.time(), tracing.span("commit", about, {"millstream.chunks": len(finished)}):
                await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, commit))
        except PartitionsLostError as exc:
            metrics.FENCED.inc()
            metrics.COMMIT_ERRORS.labels(type(exc).__name__).inc()
            log.warning("partitions_lost", description=f"{exc}; waiting for the next assignment")
            for _, chunk in finished:
                tracing.end(chunk.trace, str(exc))
            self.void()
            self.on_lost()
            return False
        for _, chunk in finished:
            tracing.end(chunk.trace)
        measure(finished, applies)
        return True

    def _start(self, task: Task, tp: TP, cut: Cut, member: Member, replayed: bool) -> None:
        failpoint(PLANNED)
        if replayed:
            metrics.REPLAYS.labels(metrics.stream_label(tp.topic)).inc()
            log.info("chunk_replay", topic=tp.topic, partition=tp.partition, first=cut.first, last=cut.last)
        chunk = task.start(tp, cut, member.generation, self._deliver_event, self.wake.set, self._on_error, replayed)

        async def raise_attempt() -> int:
            if task.attempt_wanted is None:
                task.attempt_wanted = asyncio.get_running_loop().create_future()
                self.wake.set()
            return await asyncio.shield(task.attempt_wanted)

        chunk._raise_attempt = raise_attempt


def _traced(chunk: Chunk) -> list[Output]:
    """The chunk's output records; they tell of its span, where traces are on."""
    if chunk.trace is None:
        return chunk.outputs
    return [o._replace(headers=tracing.added(list(o.headers), chunk.trace)) for o in chunk.outputs]


def measure(finished: list[tuple[TP, Chunk]], applies: list[tuple[TableLog, ChangelogWrite]]) -> None:
    """Count what was committed."""
    metrics.LAST_COMMIT.set_to_current_time()
    metrics.COMMIT_CHUNKS.inc(len(finished))
    now = time.monotonic()
    for tp, chunk in finished:
        label, rows = metrics.stream_label(tp.topic), chunk.rows or len(chunk.records)
        metrics.CHUNKS.labels(label).inc()
        metrics.ROWS.labels(label).inc(rows)
        metrics.CHUNK_ROWS.labels(label).observe(rows)
        metrics.BYTES.labels(label).inc(chunk.nbytes)
        metrics.CHUNK_BYTES.labels(label).observe(chunk.nbytes)
        metrics.OUTPUT_RECORDS.labels(label).inc(len(chunk.outputs))
        metrics.DEAD_LETTERS.labels(label).inc(len(chunk.letters))
        metrics.STATE_SECONDS.labels(label, "written").observe(now - chunk.since)
    for table, write in applies:
        metrics.TABLE_CHANGES.labels(table.store.table_name).inc(len(write.changes))
