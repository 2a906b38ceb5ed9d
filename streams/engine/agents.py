"""Agents on chunk topics: one running copy of the function per task, fed with chunks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

import faust
from faust.agents.agent import Agent as FaustAgent

from millstream import tracing
from millstream.errors import MillstreamError
from schemas.codecs import Codec
from streams.engine.chunk import Chunk
from streams.engine.topology import tables_in
from tables.scope import CURRENT


class AgentEndedError(MillstreamError):
    """An agent's function returned, though a stream has no end."""


class ChunkTopic(faust.Topic):
    """A topic whose agents get chunks. Made by `App.chunk_topic`."""

    def __init__(self, app: Any, *, codec: Codec, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self.codec = codec

    def get_topic_name(self) -> str:
        """Name, names or pattern, as `faust agents` shows it. The latter two are no legal names to send to."""
        return self.pattern.pattern if self.pattern else ",".join(self.topics)

    def derive_topic(self, **kwargs: Any) -> faust.Topic:
        """An ordinary topic with this one's configuration: a chunk topic is read whole or not at all."""
        plain = faust.Topic(
            self.app, topics=self.topics, partitions=self.partitions, config=self.config, internal=self.internal
        )
        return plain.derive_topic(**kwargs)


class ChunkStream(AsyncIterator[Chunk]):
    """What an agent iterates over. Asking for the next chunk says that the last one is finished."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Chunk] = asyncio.Queue()
        self._current: Chunk | None = None

    def put(self, chunk: Chunk) -> None:
        """Hand over a chunk. The engine has one under way at a time."""
        self._queue.put_nowait(chunk)

    async def __anext__(self) -> Chunk:
        if self._current is not None:
            CURRENT.set(None)
            self._current.finished()
            self._current = None
        chunk = await self._queue.get()
        self._current = chunk
        CURRENT.set(chunk)
        tracing.enter(chunk.trace)
        return chunk


class Agent(FaustAgent):
    """A Faust agent that may read chunks. `tables` names what it changes; by default what its body mentions."""

    logger = logging.getLogger("faust.agents")

    def __init__(self, fun: Any, *, tables: Iterable[Any] | None = None, **kwargs: Any) -> None:
        super().__init__(fun, **kwargs)
        self._declared = None if tables is None else {t.name for t in tables}

    @property
    def table_names(self) -> set[str]:
        """Tables whose partitions must be where this agent's chunks are."""
        return tables_in(self.fun) if self._declared is None else self._declared

    @property
    def reads_chunks(self) -> bool:
        """True for an agent on a chunk topic."""
        return isinstance(self.channel, ChunkTopic)

    async def on_start(self) -> None:
        """Chunk agents are started by the engine, once per task; the others by Faust."""
        if not self.reads_chunks:
            await super().on_start()

    async def run(self, chunks: ChunkStream) -> None:
        """Run the agent's function over the chunks of one task. Ends by cancellation or by an error only."""
        result = self.fun(chunks)
        if isinstance(result, AsyncIterable):
            async for value in result:
                await self._delegate_to_sinks(value)
        else:
            await result
        raise AgentEndedError(f"agent {self.name!r} returned; it has to iterate over its chunks for ever")
