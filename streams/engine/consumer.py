"""Faust's consumer with the parts replaced that decide about delivery, commit and recovery (design section 3).

Joining the group is in `membership`, loading an assignment in `loading`, reading in `reading`, commits in `cycle`;
here is where Faust calls them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiokafka
from faust.transport.drivers import aiokafka as driver
from mode import Service

from millstream import metrics
from millstream.cluster import TP
from millstream.errors import MillstreamError
from millstream.logs import get_logger
from streams.engine.cycle import CommitCycle
from streams.engine.failure import EXIT_STUCK, CountingExecutor, die
from streams.engine.loading import Assignment, Loader
from streams.engine.membership import ConsumerThread, RebalanceListener
from streams.engine.reading import Reading
from streams.engine.task import EventMessage

log = get_logger(__name__)


class StuckThreadError(MillstreamError):
    """A thread still works for a partition that was taken away."""


class Consumer(driver.Consumer):
    """The worker's consumer."""

    logger = logging.getLogger("faust.consumer")

    RebalanceListener = RebalanceListener

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = self.app.settings
        self.joined_as: tuple[int, str] = (-1, "")
        self.expelled = False
        self._ready: Assignment | None = None
        self._commit_thread = ThreadPoolExecutor(1, "commit")
        self._workers = CountingExecutor(settings.worker_threads)
        self.lost_since: float | None = None
        """When the group moved on without us, by the monotonic clock; None while we have our place."""
        self.assigned: int | None = None
        """Partitions of the current assignment, loaded or not; None before the first one and during a rebalance."""
        self.attended = self.looked = time.monotonic()
        """When the consumer's thread last answered, and the loop that reads last turned round."""
        self.loader = Loader(self, self._commit_thread)
        self.cycle = CommitCycle(
            self._commit_thread,
            self.loader.producer,
            self.app.tables_of,
            self.app.ensure_topics,
            self._deliver_event,
            self._fail,
            settings.max_replays,
            plans=settings.exactly_once,
        )
        self.cycle.on_lost = self._on_lost
        self.reading = Reading(lambda: self._thread, self.cycle, int(settings.buffer_max_bytes))

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def on_start(self) -> None:
        """Threads that sinks and decoders work in are counted, so that a revocation can wait for them."""
        asyncio.get_running_loop().set_default_executor(self._workers)
        await super().on_start()

    # ------------------------------------------------------------------ membership
    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        """Nothing of ours may be under way when we rejoin (hole l)."""
        self.assigned = None
        self.loader.keep(self.reading.parts, self.expelled)
        await self._void()
        await super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[Any], generation_id: int = 0) -> None:
        """A new assignment; it is loaded in `perform_seek`."""
        self.cycle.epoch += 1
        metrics.REBALANCES.inc()
        self.assigned = len(assigned)
        self.lost_since = None
        log.info(
            "partitions_assigned",
            generation=generation_id,
            partitions=len(assigned),
            topics=sorted({tp.topic for tp in assigned})[:20],
        )
        await super().on_partitions_assigned(assigned, generation_id)

    async def _void(self) -> None:
        running = self.cycle.void()
        self.reading.parts = {}
        bound = self.app.settings.rebalance_timeout * 0.8
        deadline = time.monotonic() + bound
        try:
            await asyncio.wait_for(self.cycle.lock.acquire(), bound)  # a running commit ends, and reaches RocksDB
        except TimeoutError:
            die(StuckThreadError(f"a commit did not end within {bound:.0f} s of losing its partitions"), EXIT_STUCK)
        self.cycle.lock.release()
        if running:
            await asyncio.wait(running, timeout=max(0.1, deadline - time.monotonic()))
        left = max(0.1, deadline - time.monotonic())
        waiting = asyncio.get_running_loop().run_in_executor(self._commit_thread, self._workers.wait_idle, left)
        done, _ = await asyncio.wait([waiting], timeout=left + 1)  # a load may hold the thread
        idle = bool(done) and waiting.result()
        if not idle or any(not t.done() for t in running):
            what = "a sink or decoder" if done else "the loading of an assignment"
            die(StuckThreadError(f"{what} did not end within {bound:.0f} s of losing its partitions"), EXIT_STUCK)
        await asyncio.to_thread(self.app.close_table_partitions)

    def _on_lost(self) -> None:
        """The group moved on without us. If it gives us no new assignment in time, the process ends."""
        self.reading.parts = {}
        self.lost_since = time.monotonic()

    # ------------------------------------------------------------------ loading and reading
    async def perform_seek(self) -> None:
        """Load the assignment and set the positions. Faust calls this when it would seek to the committed offsets."""
        try:
            if (loaded := await self.loader.load()) is not None:
                self._ready = loaded
        except Exception as exc:  # noqa: BLE001 - nothing may be read from an assignment half loaded
            self._fail(exc)

    def resume_flow(self) -> None:
        """Faust's last step of an assignment. Not before it: resuming clears the queues of ordinary agents."""
        super().resume_flow()
        if self._ready is not None and self._ready.epoch == self.cycle.epoch:
            self.reading.parts = self._ready.parts
            self._ready.begin()
        self._ready = None

    async def _drain_messages(self, fetcher: Any) -> None:
        """What Faust's fetcher runs. Its own end is no crash: during a rebalance Faust would make one of it (T22)."""
        try:
            await self._read(fetcher)
        except asyncio.CancelledError:
            if not fetcher.should_stop:
                raise

    async def _read(self, fetcher: Any) -> None:
        while not (self.should_stop or fetcher.should_stop):
            self.looked = time.monotonic()
            try:
                found = await self.reading.read() if self.flow_active else None
            except self.consumer_stopped_errors:
                if self.app.should_stop:
                    return
                raise
            except aiokafka.errors.KafkaError as exc:
                self._fail(exc)
                return
            if not found:
                await asyncio.sleep(0.01 if found is None else 0)

    # ------------------------------------------------------------------ staying in the group
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
                self.attended = time.monotonic()
            except aiokafka.errors.KafkaError as exc:
                if not self.app.should_stop:
                    self._fail(exc)

    def _check_lost(self) -> None:
        settings = self.app.settings
        bound = settings.session_timeout + settings.rebalance_timeout
        if self.lost_since is not None and time.monotonic() - self.lost_since > bound:
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
    async def _observe(self) -> None:
        if self.app.conf.web_enabled:  # nobody could ask
            await self.app.observer.run()

    async def positions(self, tps: set[TP]) -> dict[TP, int]:
        """Where the fetcher is, for those partitions whose position is known."""
        found = await self._thread.positions({driver._TopicPartition(*tp) for tp in tps})
        return {TP(*tp): position for tp, position in found.items()}

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
