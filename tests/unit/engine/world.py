"""A world for the commit cycle without Kafka: logs, a group with generations, transactions, workers that may die."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pyarrow as pa

from millstream.cluster import TP
from schemas.codecs import OFFSET, Decoded, Rejected
from sinks.memory import MemorySink
from streams.engine.agents import ChunkStream
from streams.engine.chunk import Chunk, Output
from streams.engine.cycle import CommitCycle, Member
from streams.engine.partition import Limits, PartitionState
from streams.engine.plan import Position
from streams.engine.sinking import Sinks
from streams.engine.task import Task
from streams.engine.topology import Source, TaskKey
from streams.engine.transaction import PartitionsLostError, Transaction
from tests.unit.engine.logs import Log

TOPIC_ID = "topic-id"
BAD = b"bad"
P0, P1 = TP("t", 0), TP("t", 1)
AT_ONCE = Limits(2, 1000, 0.0)


class Died(Exception):
    """The process ends here: nothing after this point happens."""


class ValueCodec:
    """The value is the row; `BAD` cannot be decoded."""

    schema = pa.schema([("value", pa.binary()), OFFSET])
    rows_of = None
    is_control = None

    def decode(self, records: Any) -> Decoded:
        good = [r for r in records if r.value != BAD]
        columns = [pa.array([r.value for r in good], pa.binary()), pa.array([r.offset for r in good], pa.int64())]
        return Decoded(
            pa.Table.from_arrays(columns, schema=self.schema), [Rejected(r, "bad") for r in records if r.value == BAD]
        )


@dataclass
class World:
    """What outlives workers: the logs, the group and its offsets, what transactions produced, and the sink."""

    partitions: list[TP]
    fenced: bool = True
    """False: a group that accepts commits of stale generations, as Kafka does for generation -1."""
    generation: int = 0
    logs: dict[TP, Log] = field(default_factory=dict)
    offsets: dict[TP, tuple[int, str]] = field(default_factory=dict)
    outputs: list[Output] = field(default_factory=list)
    sink: MemorySink = field(default_factory=MemorySink)
    transactions: list[dict[TP, Position]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.logs = {tp: Log() for tp in self.partitions}

    def commit(self, generation: int, txn: Transaction) -> None:
        """A transaction takes effect as a whole or not at all."""
        if self.fenced and generation != self.generation:
            raise PartitionsLostError(f"generation {generation} is not {self.generation}")
        self.transactions.append(dict(txn.positions))
        self.outputs += txn.outputs
        self.offsets |= {tp: (p.offset, p.metadata) for tp, p in txn.positions.items()}

    def positions(self) -> dict[TP, Position]:
        """What an assignment starts from (as `Recovery._positions`)."""
        found = {}
        for tp in self.partitions:
            position = Position.parse(*self.offsets[tp]) if tp in self.offsets else Position(0, TOPIC_ID, 1)
            found[tp] = replace(position, plan=position.plan and position.plan.replayed())
        return found

    def sunk(self, tp: TP) -> list[tuple[int, bytes]]:
        """Rows of a partition in the sink, with their offsets."""
        return sorted(
            (row["_offset"], row["value"])
            for c in self.sink.chunks.values()
            for row in c.records.to_pylist()
            if (c.id.topic, c.id.partition) == tp
        )


class Agent:
    """Writes the chunk to the sink and sends its rows on; may be held up at a gate."""

    name = "agent"

    def __init__(self, sinks: Sinks, gated: bool) -> None:
        self.sinks, self.gated = sinks, gated
        self.waiting: dict[str, asyncio.Event] = {}
        """Chunk id -> what lets the agent go on with it."""

    async def run(self, chunks: ChunkStream) -> None:
        async for chunk in chunks:
            if self.gated:
                gate = self.waiting[str(chunk.id)] = asyncio.Event()
                await gate.wait()
            await self.sinks.write(chunk)
            for value in chunk.table.column("value").to_pylist():
                chunk.emit(Output("out", None, value))


class Worker:
    """The engine's parts from the buffer to the commit, with the world in Kafka's place."""

    def __init__(
        self,
        world: World,
        limits: Limits,
        *,
        plans: bool = True,
        gated: bool = False,
        together: bool = False,
        agents: Callable[[Sinks], Iterable[Any]] | None = None,
        max_replays: int = 1000,
    ) -> None:
        self.world, self.limits, self.together = world, limits, together
        self.dead: BaseException | None = None
        self.lost = 0
        self.die_in_commit: str = ""
        self.agent = Agent(Sinks([world.sink], None), gated)
        self.agents = list(agents(Sinks([world.sink], None))) if agents else [self.agent]
        self.parts: dict[TP, PartitionState] = {}
        self.topics: list[set[str]] = []
        self._thread = ThreadPoolExecutor(1)
        self.cycle = CommitCycle(
            self._thread, lambda: self, lambda _tp: {}, self.topics.append, self._event, self.die, max_replays, plans
        )
        self.cycle.on_lost = self._on_lost

    # ------------------------------------------------------------------ life
    async def join(self) -> bool:
        """A rebalance gives everything to this worker. False if it lost the assignment while loading it."""
        self.world.generation += 1
        member = Member(self.world.generation, str(self.world.generation).encode())
        loaded = self.world.positions()
        first = {tp: p for tp, p in loaded.items() if tp not in self.world.offsets or p.plan}
        self.cycle.epoch += 1
        if first and not await self.cycle.commit(Transaction(first), [], member, []):
            return False
        tasks: dict[TaskKey, Task] = {}
        source = Source((), None, ValueCodec(), None, self.agents)
        for tp, position in loaded.items():
            key = TaskKey("f", "0" if self.together else f"{tp.topic}-{tp.partition}")
            task = tasks.setdefault(key, Task(key))
            task.parts[tp] = self.parts[tp] = PartitionState(position, self.limits)
            task.sources[tp] = source
        self.cycle.begin(tasks, {}, member)
        return True

    def die(self, error: BaseException) -> None:
        """End as `failure.die` does: nothing that still runs has an effect."""
        self.dead = self.dead or error
        self.cycle.void()
        self._thread.shutdown(wait=False)

    async def close(self) -> None:
        """End and wait for what was cancelled."""
        self.dead = self.dead or Died()
        running = self.cycle.void()
        if running:
            await asyncio.wait(running)
        self._thread.shutdown()

    def _on_lost(self) -> None:
        self.lost += 1
        self.parts = {}

    async def _event(self, message: Any) -> None:
        raise AssertionError("no ordinary topics here")

    # ------------------------------------------------------------------ steps
    def commit(self, txn: Transaction, metadata: bytes) -> None:
        """Called in the commit thread (Committer)."""
        if self.die_in_commit == "before":
            raise Died
        self.world.commit(int(metadata), txn)
        if self.die_in_commit == "after":
            raise Died

    def fetch(self, tp: TP, batches: int = 1_000_000) -> None:
        """Read on, as far as back-pressure allows."""
        part = self.parts.get(tp)
        if part is not None and part.wants_more:
            part.add(self.world.logs[tp].fetch(part._read_to, batches), 0.0)

    async def round(self) -> None:
        """One commit cycle; then every new chunk is with its agent."""
        try:
            await self.cycle.round()
        except Died as exc:
            self.die(exc)
        await self.settle(lambda c: c.done.is_set() or str(c.id) in self.agent.waiting)

    async def work(self) -> None:
        """The agents get through with what they have."""
        chunks = [t.open[1] for t in self.cycle.tasks.values() if t.open]
        for chunk in chunks:
            if gate := self.agent.waiting.get(str(chunk.id)):
                gate.set()
        await self.settle(lambda c: c.done.is_set())

    async def settle(self, reached: Callable[[Chunk], bool]) -> None:
        """Until all open chunks are where they should be, or the worker is dead."""
        async with asyncio.timeout(60):
            # Steps of two threads and several tasks: nothing tells when they have all come to rest.
            while not self.dead and not all(reached(t.open[1]) for t in self.cycle.tasks.values() if t.open):  # noqa: ASYNC110
                await asyncio.sleep(0.0005)

    async def finish(self, most: int = 10_000) -> None:
        """Everything in the logs is processed and committed."""
        for _ in range(most):
            if all(self.world.offsets.get(tp, (0, ""))[0] >= log.end for tp, log in self.world.logs.items() if log.end):
                return
            for tp in self.world.partitions:
                self.fetch(tp)
            await self.round()
            await self.work()
            if self.dead:
                raise self.dead
        raise AssertionError(f"no end in sight: {self.world.offsets}, logs end at {self.world.logs}")


async def run_for(worker: Worker, until: Callable[[], Awaitable[Any]]) -> None:
    """Run the cycle as the consumer does while `until` is awaited."""
    task = asyncio.create_task(worker.cycle.run())
    try:
        await until()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def only_chunk(worker: Worker) -> Chunk:
    """The one open chunk."""
    (chunk,) = [t.open[1] for t in worker.cycle.tasks.values() if t.open]
    return cast(Chunk, chunk)


def world_of(*values: bytes, partitions: int = 1) -> World:
    """Its topic `t` has these values in each partition."""
    world = World([TP("t", p) for p in range(partitions)])
    for log in world.logs.values():
        log.append(values)
    return world


async def joined(world: World, limits: Limits = AT_ONCE, **kwargs: Any) -> Worker:
    """A worker that has all partitions, and has read them."""
    worker = Worker(world, limits, **kwargs)
    assert await worker.join()
    for tp in world.partitions:
        worker.fetch(tp)
    return worker
