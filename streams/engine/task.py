"""A task: partitions that are always on one worker, with at most one open chunk among them (hole d)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from faust.types.tuples import ConsumerMessage

from millstream import metrics, tracing
from millstream.cluster import TP
from schemas.chunk import ChunkId
from streams.engine.agents import Agent, ChunkStream
from streams.engine.chunk import Chunk
from streams.engine.partition import Cut, PartitionState
from streams.engine.topology import Source, TaskKey


class EventMessage(ConsumerMessage):
    """A record of an ordinary topic on its way through Faust; the chunk it came out of rides along."""

    chunk: Chunk

    _acked = False

    @property
    def acked(self) -> bool:
        """All streams are through with the event. Faust's compiled iterator sets this without calling anything."""
        return self._acked

    @acked.setter
    def acked(self, value: bool) -> None:
        if value and not self._acked:
            self._acked = True
            self.chunk.finished()


class Task:
    """Drives chunks of its partitions through the agents, one at a time."""

    def __init__(self, key: TaskKey) -> None:
        self.key = key
        self.parts: dict[TP, PartitionState] = {}
        self.sources: dict[TP, Source] = {}
        self.parked: set[TP] = set()
        self.open: tuple[TP, Chunk] | None = None
        self.attempt_wanted: asyncio.Future[int] | None = None
        self._streams: dict[tuple[str, str], ChunkStream] = {}
        self.running: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ choosing
    def due_in(self, now: float) -> float:
        """Seconds until one of the partitions has a chunk to seal."""
        if self.open is not None or self.has_plan:
            return float("inf")
        return min((p.due_in(now) for tp, p in self.parts.items() if tp not in self.parked), default=float("inf"))

    def to_replay(self, now: float) -> tuple[TP, Cut] | None:
        """An open plan whose range has been read."""
        for tp, part in self.parts.items():
            if tp not in self.parked and (cut := part.replay(now)) is not None:
                return tp, cut
        return None

    @property
    def has_plan(self) -> bool:
        """True while some plan waits for its records: nothing new is planned before."""
        return any(p.position.plan for tp, p in self.parts.items() if tp not in self.parked)

    def to_seal(self, now: float) -> tuple[TP, Cut] | None:
        """The next chunk to plan: of the partition whose oldest record waits longest."""
        ready = [(p.due_in(now), tp) for tp, p in self.parts.items() if tp not in self.parked and p.ready(now)]
        for _, tp in sorted(ready):
            if (cut := self.parts[tp].seal(now)) is not None:
                return tp, cut
        return None

    # ------------------------------------------------------------------ running
    def start(
        self,
        tp: TP,
        cut: Cut,
        generation: int,
        deliver_event: Callable[[EventMessage], Awaitable[None]],
        on_written: Callable[[], None],
        on_error: Callable[[BaseException], None],
        replayed: bool,
    ) -> Chunk:
        """Open the chunk and set the agents to work on it."""
        source, chunk = self.sources[tp], self._chunk(tp, cut, generation, replayed)
        self.open = tp, chunk
        label, chunk.since = metrics.stream_label(tp.topic), time.monotonic()
        if not replayed:
            metrics.STATE_SECONDS.labels(label, "reading").observe(cut.at - cut.since)
            metrics.STATE_SECONDS.labels(label, "planned").observe(max(0.0, chunk.since - cut.at))

        async def process() -> None:
            try:
                await self._process(source, chunk, generation, deliver_event, on_error)
            except Exception as exc:  # noqa: BLE001 - whatever it is, the worker must not commit past it
                on_error(exc)
            else:
                now = time.monotonic()
                metrics.STATE_SECONDS.labels(metrics.stream_label(chunk.topic), "writing").observe(now - chunk.since)
                chunk.since = now
                on_written()

        self._spawn(process())
        return chunk

    def _chunk(self, tp: TP, cut: Cut, generation: int, replayed: bool) -> Chunk:
        """What was cut, under its identity, with its trace begun."""
        position = self.parts[tp].position
        chunk = Chunk(
            ChunkId(
                tp.topic,
                position.topic_id,
                position.epoch,
                tp.partition,
                cut.first,
                cut.last,
                cut.crc,
                position.plan.attempt if position.plan else 0,
                generation,
            ),
            cut.records,
            replayed=replayed,
            control=cut.control,
            tables=frozenset(self.sources[tp].tables),
            nbytes=cut.nbytes,
        )
        chunk.trace = tracing.begin(
            "chunk",
            tracing.told_by(cut.records),
            {
                "messaging.system": "kafka",
                "messaging.destination.name": tp.topic,
                "messaging.destination.partition.id": str(tp.partition),
                "messaging.kafka.offset": cut.first,
                "messaging.batch.message_count": len(cut.records),
                "millstream.last_offset": cut.last,
                "millstream.replayed": replayed,
            },
        )
        return chunk

    async def _process(
        self,
        source: Source,
        chunk: Chunk,
        generation: int,
        deliver_event: Callable[[EventMessage], Awaitable[None]],
        on_error: Callable[[BaseException], None],
    ) -> None:
        label = metrics.stream_label(chunk.topic)
        tracing.enter(chunk.trace)
        if source.codec is not None:
            if chunk.control is None:
                with metrics.STAGE_SECONDS.labels(label, "decode").time():
                    decoded = await asyncio.to_thread(source.codec.decode, chunk.records)
                chunk.table = decoded.table
                chunk.rejected += decoded.rejected
            else:
                chunk.table = source.codec.schema.empty_table()
        with metrics.STAGE_SECONDS.labels(label, "agent").time():
            chunk.begin(len(source.agents) if source.codec is not None else len(chunk.records))
            if source.codec is None:
                await self._deliver_events(chunk, generation, deliver_event)
            else:
                for agent in source.agents:
                    self._stream_of(agent, chunk.topic, on_error).put(chunk)
            await chunk.done.wait()

    def _stream_of(self, agent: Agent, topic: str, on_error: Callable[[BaseException], None]) -> ChunkStream:
        key = agent.name, topic
        if key not in self._streams:
            stream = self._streams[key] = ChunkStream()

            async def run() -> None:
                try:
                    await agent.run(stream)
                except Exception as exc:  # noqa: BLE001 - an agent's error stops the worker (T1)
                    on_error(exc)

            self._spawn(run())
        return self._streams[key]

    async def _deliver_events(
        self, chunk: Chunk, generation: int, deliver: Callable[[EventMessage], Awaitable[None]]
    ) -> None:
        for r in chunk.records:
            message = EventMessage(
                chunk.topic, chunk.partition, r.offset, r.timestamp / 1000, r.timestamp_type, tuple(r.headers),
                r.key, r.value, r.checksum, len(r.key or b""), len(r.value or b""), generation_id=generation,
            )  # fmt: skip
            message.chunk = chunk
            await deliver(message)
            if message.refcount == 0 and not message.acked:
                chunk.finished()  # no stream took it, or it was rejected by its decoder

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    # ------------------------------------------------------------------ ending
    def abandon(self) -> None:
        """The partitions are gone: nothing of what runs may have an effect any more."""
        if self.open is not None:
            self.open[1].abandon()
            tracing.end(self.open[1].trace, "the partition was taken away; its next owner replays the chunk")
        for task in self.running:
            task.cancel()
