"""Faust's consumer with the parts replaced that decide about delivery, commit and recovery (design section 3).

Membership and fetching stay aiokafka's, in Faust's consumer thread; positions, chunks and commits are ours.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import aiokafka
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from mode import Service

from millstream import metrics
from millstream.cluster import DEAD_LETTER_BYTES, TP
from millstream.errors import MillstreamError
from millstream.logs import get_logger
from streams.engine import fetch
from streams.engine.cycle import CommitCycle, Committer, Member
from streams.engine.failure import EXIT_STUCK, CountingExecutor, die
from streams.engine.partition import Limits, PartitionState
from streams.engine.plain import AtLeastOnceProducer
from streams.engine.plan import Position
from streams.engine.recovery import Loaded
from streams.engine.task import EventMessage, Task
from streams.engine.topology import TaskKey
from streams.engine.transaction import Transaction, TransactionalProducer, group_metadata

log = get_logger(__name__)

FETCH_BATCHES = 2000
"""Record batches that one read may bring; the memory bound is the fetch size."""


class StuckThreadError(MillstreamError):
    """A thread still works for a partition that was taken away."""


class RebalanceListener(driver.ConsumerRebalanceListener):
    """Runs in the consumer thread, the only place where generation and member id belong together for sure."""

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> Any:
        """Note whether we are still a member (a rebalance), or were expelled."""
        coordinator = self._thread._consumer._coordinator
        consumer = self._thread.consumer
        consumer.expelled = consumer.joined_as != (coordinator.generation, coordinator.member_id)
        return super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        """Note who we are in this generation, then go on as Faust does."""
        coordinator = self._thread._consumer._coordinator
        self._thread.consumer.joined_as = (coordinator.generation, coordinator.member_id)
        await super().on_partitions_assigned(assigned)


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, with our assignor, a pattern subscription and fetches of whole batches."""

    logger = logging.getLogger("faust.consumer")

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        app, settings = self.app, self.app.settings
        self._assignor = app.assignor
        fetch.install()
        fetch.WHOLE_BATCHES.set(True)
        return aiokafka.AIOKafkaConsumer(
            client_id=app.conf.broker_client_id,
            group_id=app.conf.id,
            bootstrap_servers=driver.server_list(transport.url, transport.default_port),
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset="none",  # hole c: out of range is never skipped
            isolation_level="read_committed",
            check_crcs=True,
            max_poll_records=None,
            max_poll_interval_ms=int(settings.rebalance_timeout * 1000),
            fetch_max_bytes=int(settings.fetch_max_bytes),
            max_partition_fetch_bytes=int(settings.partition_fetch_bytes),
            fetch_max_wait_ms=100,
            request_timeout_ms=int(max(settings.request_timeout, settings.rebalance_timeout + 5) * 1000),
            session_timeout_ms=int(settings.session_timeout * 1000),
            rebalance_timeout_ms=int(settings.rebalance_timeout * 1000),
            heartbeat_interval_ms=int(settings.heartbeat_interval * 1000),
            metadata_max_age_ms=int(settings.discovery_interval * 1000),  # how soon new topics are seen (T12)
            **driver.credentials_to_aiokafka_auth(app.conf.broker_credentials, app.conf.ssl_context),
        )

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Subscribe to every topic that an agent reads, those to come included."""
        pattern = self.app.topology.subscription.pattern
        await self.call_thread(self._ensure_consumer().subscribe, pattern=pattern, listener=self._rebalance_listener)

    async def getmany(self, active_partitions: Any, timeout: float) -> Any:  # noqa: ASYNC109
        """Fetch whole batches."""
        return await self.call_thread(
            self._fetch_records,
            self._ensure_consumer(),
            active_partitions,
            timeout=timeout,
            max_records=FETCH_BATCHES,
        )

    async def attend(self) -> None:
        """Tell aiokafka that the application lives. Raises KafkaError: what its coordinator cannot go on after."""
        await self.call_thread(self._attend, self._ensure_consumer())

    async def _attend(self, consumer: aiokafka.AIOKafkaConsumer) -> None:
        with consumer._subscription.fetch_context():
            consumer._coordinator.check_errors()

    async def commit_plain(self, offsets: dict[TP, Position]) -> None:
        """Commit offsets without a transaction (exactly_once off)."""
        await self.call_thread(
            self._ensure_consumer().commit,
            {aiokafka.TopicPartition(*tp): OffsetAndMetadata(p.offset, p.metadata) for tp, p in offsets.items()},
        )


class Consumer(driver.Consumer):
    """The worker's consumer."""

    logger = logging.getLogger("faust.consumer")

    RebalanceListener = RebalanceListener

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = self.app.settings
        self.joined_as: tuple[int, str] = (-1, "")
        self.expelled = False
        self._kept: dict[TP, Position] = {}
        """Open plans that the last rebalance took from this worker while it was a member."""
        self._loaded_epoch = -1
        self._load_lock = asyncio.Lock()
        self._fetch_lock = asyncio.Lock()
        self._parts: dict[TP, PartitionState] = {}
        self._ready: tuple[int, dict[TP, PartitionState], Callable[[], None]] | None = None
        self._commit_thread = ThreadPoolExecutor(1, "commit")
        self._producer: Committer | None = None
        self._workers = CountingExecutor(settings.worker_threads)
        self._lost_since: float | None = None
        self.cycle = CommitCycle(
            self._commit_thread,
            lambda: self._producer,  # type: ignore[arg-type,return-value]
            self.app.tables_of,
            self.app.ensure_topics,
            self._deliver_event,
            self._fail,
            settings.max_replays,
            plans=settings.exactly_once,
        )
        self.cycle.on_lost = self._on_lost

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def on_start(self) -> None:
        """Threads that sinks and decoders work in are counted, so that a revocation can wait for them."""
        asyncio.get_running_loop().set_default_executor(self._workers)
        await super().on_start()

    # ------------------------------------------------------------------ membership
    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        """Nothing of ours may be under way when we rejoin (hole l)."""
        if self.expelled:
            self._kept = {}
        elif self._loaded_epoch == self.cycle.epoch:
            self._kept = {tp: part.position for tp, part in self._parts.items() if part.position.plan}
        await self._void()
        await super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[Any], generation_id: int = 0) -> None:
        """A new assignment; it is loaded in `perform_seek`."""
        self.cycle.epoch += 1
        metrics.REBALANCES.inc()
        self._lost_since = None
        log.info(
            "partitions_assigned",
            generation=generation_id,
            partitions=len(assigned),
            topics=sorted({tp.topic for tp in assigned})[:20],
        )
        await super().on_partitions_assigned(assigned, generation_id)

    async def _void(self) -> None:
        running = self.cycle.void()
        self._parts = {}
        async with self.cycle.lock:
            pass  # a running commit ends, and reaches RocksDB
        bound = self.app.settings.rebalance_timeout * 0.8
        deadline = time.monotonic() + bound
        if running:
            await asyncio.wait(running, timeout=bound)
        left = max(0.1, deadline - time.monotonic())
        idle = await asyncio.get_running_loop().run_in_executor(self._commit_thread, self._workers.wait_idle, left)
        if not idle or any(not t.done() for t in running):
            die(
                StuckThreadError(f"a sink or decoder did not end within {bound:.0f} s of losing its partition"),
                EXIT_STUCK,
            )
        await asyncio.to_thread(self.app.close_table_partitions)

    def _on_lost(self) -> None:
        """The group moved on without us. If it gives us no new assignment in time, the process ends."""
        self._parts = {}
        self._lost_since = time.monotonic()

    # ------------------------------------------------------------------ loading
    async def perform_seek(self) -> None:
        """Load the assignment and set the positions. Faust calls this when it would seek to the committed offsets."""
        async with self._load_lock:
            epoch = self.cycle.epoch
            if self._loaded_epoch == epoch:
                return
            generation, member_id = self.joined_as
            if generation != self.app.consumer_generation_id:
                return  # another rebalance is under way already
            assigned = {TP(*tp) for tp in self.assignment() if self.app.topology.task_of(TP(*tp))}
            member = Member(generation, group_metadata(self.app.conf.id, generation, member_id))
            try:
                loaded = await self._load(assigned, epoch)
                if epoch != self.cycle.epoch:
                    return
                for tp, position in loaded.positions.items():
                    loaded.positions[tp] = position.unless_kept(self._kept.get(tp))
                if not await self._commit_first(loaded, member):
                    return
                self._loaded_epoch = epoch
                await self._begin(loaded, member, epoch)
            except Exception as exc:  # noqa: BLE001 - nothing may be read from an assignment half loaded
                self._fail(exc)

    async def _load(self, assigned: set[TP], epoch: int) -> Loaded:
        loop = asyncio.get_running_loop()
        if self._producer is None:
            self._producer = await loop.run_in_executor(self._commit_thread, self._new_producer)
        tables = {tp: list(self.app.tables_of(tp).values()) for tp in assigned}
        # In the commit thread: a load and a commit never overlap.
        return await loop.run_in_executor(
            self._commit_thread, self.app.recovery.load, assigned, tables, lambda: epoch == self.cycle.epoch
        )

    async def _commit_first(self, loaded: Loaded, member: Member) -> bool:
        """Put on record, fenced: partitions begun for the first time, and plans met open (counted, hole i)."""
        fresh = {f.tp for f in loaded.fresh}
        moved = {tp: p for tp, p in loaded.positions.items() if tp in fresh or p.plan}
        if not moved:
            return True
        txn = Transaction(moved, [f.output for f in loaded.fresh])
        return await self.cycle.commit(txn, [], member, [])

    async def _begin(self, loaded: Loaded, member: Member, epoch: int) -> None:
        settings, topology = self.app.settings, self.app.topology
        limits = Limits(settings.chunk_max_rows, int(settings.chunk_max_bytes), settings.chunk_max_age)
        tasks: dict[TaskKey, Task] = {}
        parts: dict[TP, PartitionState] = {}
        for tp, position in sorted(loaded.positions.items()):
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
        async with self._fetch_lock:  # no fetch may span the seek
            if epoch != self.cycle.epoch:
                return
            try:
                await self.seek_wait({driver._TopicPartition(*tp): p.position.offset for tp, p in parts.items()})
            except (AssertionError, aiokafka.errors.IllegalStateError):
                if epoch == self.cycle.epoch and parts.keys() <= {TP(*tp) for tp in self.assignment()}:
                    raise
                return  # a new topic changed the subscription under us (T12): the next assignment is loaded anew
            if epoch != self.cycle.epoch:
                return
            self._ready = epoch, parts, partial(self.cycle.begin, tasks, loaded.topic_ids, member)

    def resume_flow(self) -> None:
        """Faust's last step of an assignment. Not before it: resuming clears the queues of ordinary agents."""
        super().resume_flow()
        if self._ready is not None and self._ready[0] == self.cycle.epoch:
            _, self._parts, begin = self._ready
            begin()
        self._ready = None

    def _new_producer(self) -> Committer:
        settings = self.app.settings
        if not settings.exactly_once:
            return AtLeastOnceProducer(self.app.kafka_config, self._commit_plain, settings.request_timeout)
        name = f"{self.app.conf.id}-{settings.worker_slot}"
        return TransactionalProducer(
            self.app.kafka_config,
            name,
            settings.transaction_timeout,
            int(settings.max_message_bytes) + DEAD_LETTER_BYTES,
        )

    def _commit_plain(self, offsets: dict[TP, Position]) -> None:
        """Called in the commit thread."""
        asyncio.run_coroutine_threadsafe(self._thread.commit_plain(offsets), self.loop).result()

    # ------------------------------------------------------------------ reading
    async def _drain_messages(self, fetcher: Any) -> None:
        """What Faust's fetcher runs. Its own end is no crash: during a rebalance Faust would make one of it (T22)."""
        try:
            await self._read(fetcher)
        except asyncio.CancelledError:
            if not fetcher.should_stop:
                raise

    async def _read(self, fetcher: Any) -> None:
        """Read batches into the partitions' buffers, for as long as they have room (back-pressure)."""
        while not (self.should_stop or fetcher.should_stop):
            wanted = self._wanted()
            if not wanted or not self.flow_active:
                await asyncio.sleep(0.01)
                continue
            try:
                async with self._fetch_lock:
                    epoch = self.cycle.epoch
                    found = await self._thread.getmany(wanted, 0.1)
                    if epoch != self.cycle.epoch:
                        continue
                    self._add(found)
            except self.consumer_stopped_errors:
                if self.app.should_stop:
                    return
                raise
            except aiokafka.errors.KafkaError as exc:
                self._fail(exc)
                return
            if not found:
                await asyncio.sleep(0)

    def _wanted(self) -> set[Any]:
        budget = self.app.settings.buffer_max_bytes
        # Open chunks count: while a sink is down every partition holds one.
        buffered = sum(p.buffered_bytes for p in self._parts.values()) + self.cycle.open_bytes
        metrics.BUFFERED_BYTES.set(buffered)
        return {
            driver._TopicPartition(*tp)
            for tp, p in self._parts.items()
            # A planned range that is not open yet must be read, whatever the others hold: its chunk is the next one.
            if p.wants_more and (buffered < budget or p.position.plan)
        }

    def _add(self, found: dict[Any, list[Any]]) -> None:
        now = time.monotonic()
        for tp, batches in found.items():
            part = self._parts.get(TP(*tp))
            if part is not None and batches:
                part.add(batches, now)
                if part.position.plan or part.ready(now):
                    self.cycle.wake.set()

    @Service.task
    async def _keep_place(self) -> None:
        """Stay in the group also while nothing is fetched.

        A consumer that fetches nothing for the rebalance timeout is dead to aiokafka: it leaves the group and does not
        join again before it fetches. But all buffers may be full (T21), an assignment being loaded, or empty.
        """
        settings = self.app.settings
        while not self.should_stop:
            await self.sleep(min(settings.heartbeat_interval, settings.rebalance_timeout / 4))
            self._check_lost()
            try:
                if self._thread._consumer is not None:
                    await self._thread.attend()
            except aiokafka.errors.KafkaError as exc:
                if not self.app.should_stop:
                    self._fail(exc)

    def _check_lost(self) -> None:
        settings = self.app.settings
        bound = settings.session_timeout + settings.rebalance_timeout
        if self._lost_since is not None and time.monotonic() - self._lost_since > bound:
            self._fail(TimeoutError(f"the group gave no assignment within {bound:.0f} s of losing the last one"))

    # ------------------------------------------------------------------ events of ordinary topics
    async def _deliver_event(self, message: EventMessage) -> None:
        await self.callback(message)

    async def commit(self, *_args: Any, **_kwargs: Any) -> bool:
        """Only the cycle commits. Called every few seconds: Faust's notes of what was acknowledged must not pile up."""
        self._acked.clear()
        self._acked_index.clear()
        return False

    async def on_task_error(self, exc: BaseException) -> None:
        """An agent of an ordinary topic failed: the worker stops, uncommitted (T1)."""
        self._fail(exc)

    def verify_event_path(self, now: float, tp: Any) -> None:
        """Faust's livelock detector looks at its own bookkeeping, which is not kept here."""

    # ------------------------------------------------------------------ the cycle as a service
    @Service.task
    async def _commit_cycle(self) -> None:
        await self.cycle.run()

    async def drain(self, bound: float) -> None:
        """Finish the open chunks and commit them, for at most `bound` seconds; then abandon what is left (T22)."""
        self.cycle.draining = True
        deadline = time.monotonic() + bound
        while self.cycle.open_chunks and time.monotonic() < deadline:
            self.cycle.wake.set()
            await asyncio.sleep(0.02)
        left = self.cycle.open_chunks
        log.info(
            "worker_drained", abandoned_chunks=left, description="an abandoned chunk is replayed by its next owner"
        )
        await self._void()

    def _fail(self, exc: BaseException) -> None:
        """Whatever it is, nobody may continue past it."""
        die(exc)
