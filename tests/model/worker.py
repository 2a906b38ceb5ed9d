"""A simulated worker: the engine's own consumer, cycle, tasks, recovery, producer, store and sinks on the kernel.

Not the engine's: membership and fetching (aiokafka's part), librdkafka (clients.py), RocksDB (a dict), and Faust.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from faust.transport.drivers import aiokafka as driver

from millstream import cluster, transactional
from millstream.cluster import TP, Cluster
from millstream.settings import Settings
from sinks import wrapper
from sinks.wrapper import SinkGroup
from streams.engine import consumer, cycle, reader, reading, recovery, transaction
from streams.engine.agents import ChunkStream
from streams.engine.chunk import Output
from streams.engine.recovery import Recovery, TableLog
from streams.engine.registry import Registry
from streams.engine.sinking import Sinks
from streams.engine.topology import Source, Topology
from tables.store import Store, StorePosition
from tests.chaos import controls
from tests.model.clients import LIBRDKAFKA, Admin
from tests.model.kernel import CLOCK, Died, Process, Request
from tests.model.sinks import ClickHouseSink, FileSink
from tests.unit.engine.world import ValueCodec

if TYPE_CHECKING:
    from tests.model.world import World

SETTINGS = Settings(
    app_id="model", namespace="", chunk_max_bytes=1 << 20, chunk_max_age=1.0, max_replays=10**6, stability_timeout=10**8
)
CHANGELOG = "model-counts-changelog"


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """The engine's modules on simulated ground: librdkafka, time, the log, Faust's consumer, the end of a process."""
    with contextlib.ExitStack() as stack:
        for module in (cluster, reader, transaction, transactional, controls):
            stack.enter_context(mock.patch.object(module, "ck", LIBRDKAFKA))
        for module in (cluster, reader, reading, recovery, cycle, consumer, wrapper):
            stack.enter_context(mock.patch.object(module, "time", CLOCK))
        for module in (cluster, recovery, cycle, consumer, wrapper):
            if hasattr(module, "log"):
                stack.enter_context(mock.patch.object(module, "log", Silent()))
        stack.enter_context(mock.patch.object(transactional, "threading", SimpleNamespace(Thread=Bounded)))
        stack.enter_context(mock.patch.object(driver.Consumer, "__init__", _faust_part))
        stack.enter_context(mock.patch.object(consumer, "die", _die))
        yield


class Bounded:
    """A thread that is there only to be waited for no longer than some time: here it is waited for."""

    def __init__(self, *, target: Callable[[], None], name: str, daemon: bool) -> None:
        self.start = target

    def join(self, _timeout: float) -> None:
        pass


class Silent:
    """A logger, or what else is told things that do not matter here."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_, **__: None


def _faust_part(self: Any, app: Any) -> None:
    """What Faust's consumer sets up, as far as ours uses it."""
    self.app = app
    self.diag = Silent()
    self.flow_active = False
    self.can_resume_flow, self.suspend_flow = asyncio.Event(), asyncio.Event()
    self._active_partitions, self._paused_partitions = None, set()
    self._gap, self._acked, self._acked_index, self._read_offset, self._committed_offset = ({} for _ in range(5))

    async def nothing(*_: Any) -> None:
        pass

    self._on_partitions_revoked = self._on_partitions_assigned = nothing
    self._set_active_tps = lambda _tps: None


def _die(error: BaseException, _code: int = 0) -> None:
    process = asyncio.get_running_loop().process  # type: ignore[attr-defined]
    process.die(error)


class SimStore(Store):
    """The store's rules over a dict that outlives the process; a write is one request, whole or not at all."""

    def __init__(self, process: Process, disk: dict[int, dict[bytes, bytes]], at: dict[int, StorePosition]) -> None:
        self.table_name = "counts"
        self._dbs = {}
        self._process, self._disk, self._at = process, disk, at

    def open_partition(self, partition: int) -> StorePosition | None:
        self._dbs[partition] = self._disk.setdefault(partition, {})
        return self._at.get(partition)

    def wipe_partition(self, partition: int) -> None:
        self._disk.pop(partition, None)
        self._at.pop(partition, None)
        self.open_partition(partition)

    def close_partition(self, partition: int) -> None:
        self._dbs.pop(partition, None)

    def apply(self, partition: int, changes: Iterable[tuple[bytes, bytes | None]], position: StorePosition) -> None:
        def write() -> None:
            for key, value in changes:
                if value is None:
                    self._disk[partition].pop(key, None)
                else:
                    self._disk[partition][key] = value
            self._at[partition] = position._replace(applied_at=self._process.clock.now)

        self._process.call("rocksdb", write, network=False)


class Count:
    """The agent: counts records by key, passes them on with the count, writes them down."""

    name = "count"

    def __init__(self, store: Store, sinks: SinkGroup) -> None:
        self.store, self.sinks = store, sinks

    async def run(self, chunks: ChunkStream) -> None:
        async for chunk in chunks:
            for row in chunk.table.to_pylist():
                key = row["value"][:1]
                n = int(self.store._get(key) or b"0") + 1
                self.store._set(key, b"%d" % n)
                value = {"p": chunk.partition, "o": row["_offset"], "k": key.decode(), "n": n}
                chunk.emit(Output("out", key, json.dumps(value).encode(), chunk.partition))
            await self.sinks.write(chunk)


class SimConsumer(consumer.Consumer):
    """aiokafka's part: what is assigned, positions, fetches."""

    process: SimWorker
    most = 1000
    """Batches that a fetch brings."""

    @property
    def _thread(self) -> SimConsumer:
        return self

    def assignment(self) -> set[Any]:
        return self.process.assigned

    async def seek_wait(self, positions: dict[Any, int]) -> None:
        self.process.reading = {TP(*tp): offset for tp, offset in positions.items()}

    async def getmany(self, wanted: set[Any], _timeout: float) -> dict[Any, list[Any]]:
        found, at = {}, self.process.reading
        for tp in sorted(TP(*t) for t in wanted):
            if batches := self.process.world.broker.logs[tp].fetch(at[tp], self.most):
                found[tp] = batches
                at[tp] = batches[-1].last + 1
        return found

    async def positions(self, tps: Iterable[Any]) -> dict[Any, int]:
        return {tp: self.process.reading[TP(*tp)] for tp in tps}


class SimWorker(Process):
    """One worker. `run` lets it go on."""

    def __init__(self, world: World, slot: str, rows: int, age: float) -> None:
        super().__init__(world.clock, slot)
        self.world, self.slot = world, slot
        self.member, self.joining = "", False
        self.assigned: set[TP] = set()
        self.reading: dict[TP, int] = {}
        self.membership: asyncio.Task[None] | None = None
        self.fetching: asyncio.Task[bool | None] | None = None
        broker = world.broker
        config = {"sim": self, "broker": broker}
        self.cluster = Cluster.__new__(Cluster)
        self.cluster.config, self.cluster._timeout, self.cluster._errors = config, 30.0, deque()
        self.cluster.admin = Admin(self, broker)  # type: ignore[assignment]
        disk = world.disks.setdefault(slot, ({}, {}))
        self.store = SimStore(self, *disk)
        group = Sinks([FileSink(self, world.files, broker), ClickHouseSink(self, world.clickhouse)], None)  # type: ignore[list-item]
        group._jitter = 0.0
        source = Source(("t",), None, ValueCodec(), None, [Count(self.store, group)], {"counts"})  # type: ignore[arg-type]
        tables = {"counts": TableLog(CHANGELOG, self.store)}
        app: Any = SimpleNamespace(
            settings=SETTINGS.model_copy(update={"chunk_max_rows": rows, "chunk_max_age": age, "worker_slot": slot}),
            topology=Topology([source]),
            kafka_config=config,
            conf=SimpleNamespace(id="model"),
            consumer_generation_id=-1,
            recovery=Recovery(self.cluster, Registry(self.cluster, "model"), "model", 10**8),
            tables_of=lambda _tp: tables,
            ensure_topics=lambda _names: None,
            close_table_partitions=self.store._dbs.clear,
            _start_span_from_rebalancing=lambda _name: contextlib.nullcontext(),
            on_rebalance_return=lambda: None,
        )
        self.app = app
        with on_loop(self):
            self.consumer = SimConsumer(app)
        self.consumer.process = self
        self.consumer._workers = self.threads(None)  # type: ignore[assignment]
        self.cycle_task = self.loop.create_task(self.consumer.cycle.run())
        self._join(revoke=False)

    # ------------------------------------------------------------------ membership
    def beat(self) -> None:
        """A heartbeat: what the group coordinator says is acted upon."""
        if self.membership is not None and not self.membership.done():
            return
        group = self.world.broker.group
        if self.member not in group.members or group.rebalancing or group.generation != self.consumer.joined_as[0]:
            self._join(revoke=True)

    def _join(self, *, revoke: bool) -> None:
        self.membership = self.loop.create_task(self._rebalance(revoke))

    async def _rebalance(self, revoke: bool) -> None:
        consumer, broker = self.consumer, self.world.broker
        if revoke:
            consumer.flow_active = False
            consumer.expelled = self.member not in broker.group.members
            await consumer.on_partitions_revoked(set(self.assigned))
            self.assigned, self.reading = set(), {}
        generation, member, self.assigned = await self.acall("join", lambda: broker.join(self))
        consumer.joined_as = (generation, member)
        self.app.consumer_generation_id = generation
        await consumer.on_partitions_assigned(set(self.assigned), generation)
        self.loop.create_task(self._load(consumer.cycle.epoch))

    async def _load(self, epoch: int) -> None:
        await self.consumer.perform_seek()
        if epoch == self.consumer.cycle.epoch:
            self.consumer.resume_flow()

    # ------------------------------------------------------------------ going on
    def fetch(self) -> bool:
        """One fetch into the partitions' buffers, by the consumer's own rules. False without anything new."""
        if not self.consumer.flow_active or (self.fetching is not None and not self.fetching.done()):
            return False
        self.fetching = self.loop.create_task(self.consumer.reading.read())
        self.loop.idle()
        return self.fetching.done() and bool(self.fetching.result())

    def run(self, until: str | None = None, *, beats: bool = True, most: int = 1000, last_first: bool = False) -> None:
        """Go on until nothing can happen any more, or until a request of this kind is about to be delivered."""
        self.consumer.most = most
        if beats:
            self.beat()
        self.loop.idle()
        waited: dict[str, int] = {}
        for request in [r for r in self.pending if r.kind == until]:  # where it was paused before
            if (answer := request.deliver()) is not None:
                answer()
        self.loop.idle()
        for _ in range(5000):
            if self.dead:
                return
            if any(r.kind == until for r in self.pending):
                return
            if self._one(last_first) or self.fetch():
                self.loop.idle()
                continue
            poll = next((r for r in self.pending if r.idle is not None and waited.get(r.kind, 0) < 2), None)
            if poll is None:
                return
            waited[poll.kind] = waited.get(poll.kind, 0) + 1
            self._give_up(poll)
            self.loop.idle()
        raise AssertionError(f"{self.slot} goes on for ever: {[r.kind for r in self.pending]}")

    def _one(self, last_first: bool) -> bool:
        for request in [*reversed(self.pending)] if last_first else [*self.pending]:
            if (answer := request.deliver()) is not None:
                answer()
                return True
        return False

    def _give_up(self, poll: Request) -> None:
        assert poll.idle is not None
        result, error = None, None
        try:
            result = poll.idle()
        except Exception as e:  # noqa: BLE001 - the answer is the error
            error = e
        poll.take()
        self.answer(poll, result, error)


@contextlib.contextmanager
def on_loop(process: Process) -> Iterator[None]:
    """As if called on the process's event loop."""
    asyncio._set_running_loop(process.loop)
    try:
        yield
    except Died:
        pass
    finally:
        asyncio._set_running_loop(None)
