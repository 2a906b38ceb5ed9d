"""Loading an assignment: positions and tables first, then what has to be on record, then the seek. Order is rule 4."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import aiokafka
from faust.transport.drivers import aiokafka as driver

from millstream import metrics
from millstream.cluster import DEAD_LETTER_BYTES, TP
from streams.engine.cycle import CommitCycle, Committer, Member
from streams.engine.partition import Limits, PartitionState
from streams.engine.plain import AtLeastOnceProducer
from streams.engine.plan import Position
from streams.engine.recovery import Loaded
from streams.engine.task import Task
from streams.engine.topology import TaskKey
from streams.engine.transaction import (
    Transaction,
    TransactionalProducer,
    UndecidedTransactionError,
    group_metadata,
)

if TYPE_CHECKING:
    from streams.engine.consumer import Consumer


class Assignment(NamedTuple):
    """A loaded assignment, its consumer at the right positions."""

    epoch: int
    parts: dict[TP, PartitionState]
    begin: Callable[[], None]
    """Start the commit cycle on it."""


class Loader:
    """Makes assignments ready. Owns the producer, which the first load makes."""

    def __init__(self, consumer: Consumer, commit_thread: ThreadPoolExecutor) -> None:
        self._consumer, self._app, self._thread = consumer, consumer.app, commit_thread
        self._lock = asyncio.Lock()
        self._loaded_epoch = -1
        self._producer: Committer | None = None
        self._kept: dict[TP, Position] = {}
        """Open plans that the last rebalance took from this worker while it was a member."""

    def producer(self) -> Committer:
        """The committer. Made by the first load, before which nothing is committed."""
        assert self._producer is not None
        return self._producer

    @property
    def _cycle(self) -> CommitCycle:
        return self._consumer.cycle

    def keep(self, parts: Mapping[TP, PartitionState], expelled: bool) -> None:
        """The assignment is taken away: note its open plans, which count as no replay if they come back (hole i)."""
        if expelled:
            self._kept = {}
        elif self._loaded_epoch == self._cycle.epoch:
            self._kept = {tp: part.position for tp, part in parts.items() if part.position.plan}

    async def load(self) -> Assignment | None:
        """Load the assignment of now and seek to its positions; None if there is nothing new, or it is void again."""
        async with self._lock:
            epoch = self._cycle.epoch
            if self._loaded_epoch == epoch:
                return None
            generation, member_id = self._consumer.joined_as
            if generation != self._app.consumer_generation_id:
                return None  # another rebalance is under way already
            assigned = {tp for tp in self._assigned() if self._app.topology.task_of(tp)}
            member = Member(generation, group_metadata(self._app.conf.id, generation, member_id))
            with metrics.RESTORING.track_inprogress():
                loaded = await self._read(assigned, epoch)
            if epoch != self._cycle.epoch:
                return None
            for tp, position in loaded.positions.items():
                loaded.positions[tp] = position.unless_kept(self._kept.get(tp))
            if not await self._commit_first(loaded, member):
                return None
            self._loaded_epoch = epoch
            return await self._seek(loaded, member, epoch)

    def _assigned(self) -> set[TP]:
        return {TP(*tp) for tp in self._consumer.assignment()}

    async def _read(self, assigned: set[TP], epoch: int) -> Loaded:
        loop = asyncio.get_running_loop()
        if self._producer is None:
            self._producer = await loop.run_in_executor(self._thread, self._new_producer)
        tables = {tp: list(self._app.tables_of(tp).values()) for tp in assigned}
        # In the commit thread: a load and a commit never overlap.
        return await loop.run_in_executor(
            self._thread, self._app.recovery.load, assigned, tables, lambda: epoch == self._cycle.epoch
        )

    async def _commit_first(self, loaded: Loaded, member: Member) -> bool:
        """Put on record, fenced: partitions begun for the first time, and plans met open (counted, hole i)."""
        fresh = {f.tp for f in loaded.fresh}
        moved = {tp: p for tp, p in loaded.positions.items() if tp in fresh or p.plan}
        if not moved:
            return True
        txn = Transaction(moved, [f.output for f in loaded.fresh])
        return await self._cycle.commit(txn, [], member, [])

    async def _seek(self, loaded: Loaded, member: Member, epoch: int) -> Assignment | None:
        tasks, parts = self._tasks(loaded.positions)
        async with self._consumer.reading.lock:  # no fetch may span the seek
            if epoch != self._cycle.epoch:
                return None
            try:
                targets = {driver._TopicPartition(*tp): p.position.offset for tp, p in parts.items()}
                await self._consumer.seek_wait(targets)
            except (AssertionError, aiokafka.errors.IllegalStateError):
                if epoch == self._cycle.epoch and parts.keys() <= self._assigned():
                    raise
                return None  # a new topic changed the subscription under us (T12): the next assignment is loaded anew
            if epoch != self._cycle.epoch:
                return None
            return Assignment(epoch, parts, lambda: self._cycle.begin(tasks, loaded.topic_ids, member))

    def _tasks(self, positions: Mapping[TP, Position]) -> tuple[dict[TaskKey, Task], dict[TP, PartitionState]]:
        settings, topology = self._app.settings, self._app.topology
        limits = Limits(settings.chunk_max_rows, int(settings.chunk_max_bytes), settings.chunk_max_age)
        tasks: dict[TaskKey, Task] = {}
        parts: dict[TP, PartitionState] = {}
        for tp, position in sorted(positions.items()):
            key, source = topology.task_of(tp), topology.source_of(tp.topic)
            assert key is not None
            assert source is not None
            codec = source.codec
            part = PartitionState(
                position, limits, codec.rows_of if codec else None, codec.is_control if codec else None
            )
            task = tasks.setdefault(key, Task(key))
            task.parts[tp] = parts[tp] = part
            task.sources[tp] = source
        return tasks, parts

    def _new_producer(self) -> Committer:
        settings: Any = self._app.settings
        if not settings.exactly_once:
            return AtLeastOnceProducer(self._app.kafka_config, self._commit_plain, settings.request_timeout)
        return TransactionalProducer(
            self._app.kafka_config,
            f"{self._app.conf.id}-{settings.worker_slot}",
            settings.transaction_timeout,
            int(settings.max_message_bytes) + DEAD_LETTER_BYTES,
        )

    def _commit_plain(self, offsets: dict[TP, Position]) -> None:
        """Called in the commit thread. Raises UndecidedTransactionError."""
        consumer, timeout = self._consumer, float(self._app.settings.request_timeout)
        committing = asyncio.run_coroutine_threadsafe(consumer._thread.commit_plain(offsets), consumer.loop)
        try:
            committing.result(timeout)
        except TimeoutError as exc:
            committing.cancel()
            raise UndecidedTransactionError(
                f"offsets were not committed within {timeout:g} s (MILLSTREAM_REQUEST_TIMEOUT): the outcome is unknown"
            ) from exc
