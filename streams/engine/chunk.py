"""The open chunk: what an agent is given, and what it makes of it until the commit."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple

import pyarrow as pa
from faust.types import TopicT

from schemas.batch import Run
from schemas.chunk import Chunk as SinkChunk
from schemas.chunk import ChunkId
from schemas.codecs import Rejected
from tables.columns import Column
from tables.scope import Changes, OutsideChunkError

Headers = Sequence[tuple[str, bytes]]
_offset = attrgetter("offset")


class Output(NamedTuple):
    """A record to be produced in the chunk's transaction."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int = -1
    """-1: by the key's murmur2 hash, as Java and aiokafka do (hole m)."""
    timestamp_ms: int = 0
    """0: the time of producing."""
    headers: Headers = ()


class Chunk:
    """A range of one partition's log, decoded, with everything an agent makes of it.

    What an agent needs: `table` (rows as Arrow, `_offset` last), `control` (the control record, if the chunk is one),
    `id`, `send` by way of `await topic.send(…)`, `reject`. The rest is the engine's.
    """

    def __init__(
        self,
        id: ChunkId,
        records: Sequence[Any],
        *,
        replayed: bool = False,
        control: bool = False,
        tables: frozenset[str] = frozenset(),
        nbytes: int = 0,
    ) -> None:
        self.id = id
        self.records = records
        self.replayed = replayed
        self.nbytes = nbytes
        """Decoded bytes of the records, for the worker's budget."""
        self.control = records[0] if control else None
        self.table: pa.Table = pa.table({})
        self.rejected: list[Rejected] = []
        self.changes: dict[str, Changes] = {}
        self.outputs: list[Output] = []
        self.alive = True
        """False once the partition was taken away: whatever a straggling task still does is refused."""
        self.done = asyncio.Event()
        self.trace: Any = None
        """Its span, where traces are on."""
        self.since = 0.0
        """When it entered the state that it is in, by the monotonic clock (metrics only)."""
        self._tables = tables
        self._running = 0
        self._raise_attempt: Callable[[], Awaitable[int]] | None = None

    # ------------------------------------------------------------------ for agents
    @property
    def topic(self) -> str:
        """Name of the topic."""
        return self.id.topic

    @property
    def partition(self) -> int:
        """Number of the partition."""
        return self.id.partition

    @property
    def rows(self) -> int:
        """Number of rows in `table`."""
        return int(self.table.num_rows)

    def reject(self, offset: int, reason: str) -> None:
        """Send the record at this offset to the dead-letter topic, in the chunk's transaction (original bytes)."""
        at = bisect_left(self.records, offset, key=_offset)
        if at == len(self.records) or self.records[at].offset != offset:
            raise ValueError(f"offset {offset} is not in chunk {self.id}")
        self.rejected.append(Rejected(self.records[at], reason))

    @property
    def letters(self) -> list[Rejected]:
        """Rejected records, each once however many agents or decoders reject it: under the first reason."""
        return list({r.record.offset: r for r in reversed(self.rejected)}.values())[::-1]

    def emit(self, output: Output) -> None:
        """Add an output record to the chunk's transaction."""
        self._check()
        self.outputs.append(output)

    async def send_columns(self, topic: TopicT[Any] | str, keys: Column, values: Column) -> None:
        """Output records, one per row, in the chunk's transaction: `await topic.send(…)` for each, but much faster.

        `keys` and `values` are columns of strings or binary, encoded as they are to be in the log. A null key leaves
        the partition to librdkafka, a null value is a tombstone. Raises ValueError: lengths or types.
        """
        name = topic if isinstance(topic, str) else topic.get_topic_name()
        if len(keys) != len(values):
            raise ValueError(f"topic {name!r}: {len(keys)} keys, {len(values)} values")

        def outputs() -> list[Output]:
            return [Output(name, *row) for row in zip(_bytes(name, keys), _bytes(name, values), strict=True)]

        made = await asyncio.to_thread(outputs)
        self._check()
        self.outputs += made

    # ------------------------------------------------------------------ for sinks
    def for_sink(self, table: pa.Table | None = None, run: Run | None = None) -> SinkChunk:
        """What a sink is given: all rows, or those of one run."""
        self._check()
        return SinkChunk(self.id, self.table if table is None else table, run, self.replayed)

    async def raise_attempt(self) -> int:
        """Raise the attempt in a fenced transaction (hole a) and return it."""
        self._check()
        if self._raise_attempt is None:
            raise RuntimeError(f"chunk {self.id} is not driven by a commit cycle")
        attempt = await self._raise_attempt()
        self.id = replace(self.id, attempt=attempt)
        return attempt

    # ------------------------------------------------------------------ tables.scope.Scope
    @property
    def table_partition(self) -> int:
        """Partition of the tables this chunk may change."""
        return self.id.partition

    def table_changes(self, table: str) -> Changes:
        """The chunk's changes of a table."""
        self._check()
        if table not in self._tables:
            raise OutsideChunkError(
                f"table {table!r} is used by an agent of topic {self.topic!r} that does not declare it: "
                "@app.agent(topic, tables=[table]). The tables decide which partitions one worker must hold together."
            )
        return self.changes.setdefault(table, {})

    # ------------------------------------------------------------------ for the engine
    def begin(self, agents: int) -> None:
        """So many agents are about to get the chunk."""
        self._running = agents
        if not agents:
            self.done.set()

    def finished(self) -> None:
        """One agent has asked for the next chunk, or acknowledged its event: it is through with this one."""
        self._running -= 1
        if self._running == 0:
            self.done.set()

    def abandon(self) -> None:
        """The partition is gone: nothing of this chunk may be used any more."""
        self.alive = False

    def _check(self) -> None:
        if not self.alive:
            raise OutsideChunkError(f"chunk {self.id} was abandoned: its partition belongs to another worker now")


def _bytes(topic: str, column: Column) -> list[bytes | None]:
    if column.type not in (pa.binary(), pa.string(), pa.large_binary(), pa.large_string()):
        raise ValueError(f"topic {topic!r}: a column of {column.type}: keys and values are strings or binary, encoded")
    found: list[bytes | None] = column.cast(pa.binary()).to_pylist()
    return found
