"""A topology test kit: run chunk agents over given chunks, with their tables, without a broker.

    async with TopologyTest(app) as test:
        outcome = await test.send("orders", [{"id": 1, "customer": "ann", "cents": 250}])
        assert test.table("spent")["ann"] == 250
        assert outcome.sunk[0].rows == 1

What runs is the engine's own: codec, chunk, agents, overlay, RocksDB (in a temporary directory). Sinks are replaced by
`sinks.memory.MemorySink`. Every chunk is run **twice**, the second time as a replay after a crash; a difference means
that the agent is not a function of its chunk and tables (rule 13), and raises ReplayDiffersError.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import msgspec
import pyarrow as pa

from millstream.cluster import TP
from millstream.errors import ConfigError, MillstreamError
from schemas.chunk import Chunk as SinkChunk
from schemas.codecs import ArrowCodec, MsgpackCodec
from schemas.log_records import LogRecord, LogRecords
from sinks.base import BatchSink
from sinks.memory import MemoryBatchSink, MemorySink
from streams.engine.app import App
from streams.engine.chunk import Output
from streams.engine.dead_letters import dead_letter
from streams.engine.partition import Cut, Limits, PartitionState
from streams.engine.plan import Position
from streams.engine.task import EventMessage, Task
from tables.scope import Changes
from tables.store import StorePosition

_UNBOUNDED = Limits(1 << 60, 1 << 60, 1e9)
_NO_GENERATION = 0


class ReplayDiffersError(MillstreamError):
    """The same chunk over the same tables gave something else the second time (rule 13)."""


@dataclass(frozen=True)
class Outcome:
    """What one chunk produced."""

    outputs: list[Output]
    """Records for other topics, in the order of sending."""
    dead_letters: list[Output]
    """As they go to `<topic>.dlq`, headers included."""
    changes: Mapping[str, Changes]
    """Table -> encoded key -> encoded value, None for a deleted key."""
    sunk: list[SinkChunk]
    """What the sinks were given."""

    def values(self, topic: str) -> list[Any]:
        """Output values of one topic, decoded as JSON where they are JSON."""
        return [_json(o.value) for o in self.outputs if o.topic == topic]


class TopologyTest:
    """Runs an app's chunk agents. Use it as an async context manager; not while the app itself runs."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._tasks: dict[Any, Task] = {}
        self._next: dict[TP, int] = defaultdict(int)
        self._errors: list[BaseException] = []
        self.sinks: list[MemorySink] = []
        """The sinks in place of the app's own, in the order in which these were declared."""

    async def __aenter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="millstream-test-")
        self._app.conf.datadir = Path(self._directory.name)
        self._own = [(group, group.sinks) for group in self._app.sink_groups]
        for group, own in self._own:
            doubles = [(MemoryBatchSink if isinstance(s, BatchSink) else MemorySink)(s.name) for s in own]
            group.sinks = tuple(doubles)
            self.sinks += doubles
        return self

    async def __aexit__(self, *_: object) -> None:
        running = {t for task in self._tasks.values() for t in task.running}
        for task in self._tasks.values():
            task.abandon()
        if running:
            await asyncio.wait(running)
        self._app.close_table_partitions()
        for group, own in self._own:
            group.sinks = own
        if self._app.producer.started:
            await self._app.producer.stop()
        self._directory.cleanup()

    async def send(
        self,
        topic: str,
        rows: Sequence[Mapping[str, Any]] | pa.Table | None = None,
        *,
        records: Sequence[bytes | tuple[bytes | None, bytes | None] | LogRecord | None] | None = None,
        partition: int = 0,
    ) -> Outcome:
        """Run the agents of `topic` over one chunk and commit it.

        `rows`: dicts or an Arrow table, encoded as the topic's payload wants them. `records`: values as they are on the
        wire, (key, value) pairs, or whole records (their offsets do not count). Raises what an agent raises,
        ConfigError, ReplayDiffersError.
        """
        tp = TP(self._app.settings.namespace + topic, partition)
        task, encode = self._task(tp)
        first = self._next[tp]
        now = int(time.time() * 1000)
        given = [*(records or ()), *(encode(rows) if rows is not None else ())]
        found = [_record(first + i, now, what) for i, what in enumerate(given)]
        if not found:
            raise ConfigError("give rows or records: a chunk has at least one record")
        self._next[tp] = first + len(found)
        cut = Cut(
            first, first + len(found) - 1, 0, LogRecords.of(found), False, sum(len(r.value or b"") for r in found)
        )
        outcome = await self._run(task, tp, cut, replayed=False)
        for held in outcome.sunk:  # as if the crash came before the write: what is written again is compared
            for sink in self.sinks:
                sink.chunks.pop(str(held.id), None)
        again = await self._run(task, tp, cut, replayed=True)
        if (difference := _difference(outcome, again)) is not None:
            raise ReplayDiffersError(
                f"chunk {cut.first}..{cut.last} of {tp.topic}-{tp.partition}: run again it gave other {difference}. An "
                "agent must be a function of its chunk and its tables: no clock, no random, no look-up elsewhere"
            )
        self._commit(tp, outcome, task, cut)
        return outcome

    def table(self, name: str) -> Any:
        """The committed content of a table, as the web views see it."""
        return self._app.tables[name]

    # ------------------------------------------------------------------ inside
    def _task(self, tp: TP) -> tuple[Task, Any]:
        source = self._app.topology.source_of(tp.topic)
        key = self._app.topology.task_of(tp)
        if source is None or key is None:
            read = ", ".join(s.label for s in self._app.topology.sources)
            raise ConfigError(f"no agent reads topic {tp.topic!r}; read are {read}")
        if source.codec is None:
            raise ConfigError(f"topic {tp.topic!r} is an ordinary one: test its agent with agent.test_context()")
        task = self._tasks.setdefault(key, Task(key))
        if tp not in task.parts:
            task.parts[tp] = PartitionState(Position(0, "test", 1), _UNBOUNDED)
            task.sources[tp] = source
            for table in self._app.tables_of(tp).values():
                table.store.open_partition(tp.partition)
        return task, _encoder(source.codec)

    async def _run(self, task: Task, tp: TP, cut: Cut, replayed: bool) -> Outcome:
        written = asyncio.Event()

        def failed(error: BaseException) -> None:
            self._errors.append(error)
            written.set()

        async def no_events(_message: EventMessage) -> None:
            raise AssertionError("ordinary topics are refused above")

        chunk = task.start(tp, cut, _NO_GENERATION, no_events, written.set, failed, replayed)
        await written.wait()
        task.open = None
        if self._errors:
            raise self._errors.pop()
        letters = [dead_letter(chunk, r) for r in chunk.letters]
        held = [s.chunks[str(chunk.id)] for s in self.sinks if str(chunk.id) in s.chunks]
        outcome = Outcome(chunk.outputs, letters, chunk.changes, held)
        chunk.abandon()  # sealed, as before a commit
        return outcome

    def _commit(self, tp: TP, outcome: Outcome, task: Task, cut: Cut) -> None:
        tables = self._app.tables_of(tp)
        for name, changes in outcome.changes.items():
            tables[name].store.apply(tp.partition, changes.items(), StorePosition("test", cut.last + 1, 0))
        part = task.parts[tp]
        part.position = replace(part.position, offset=cut.last + 1)


def _record(offset: int, now: int, given: Any) -> LogRecord:
    if isinstance(given, LogRecord):
        return given._replace(offset=offset)
    key, value = given if isinstance(given, tuple) else (None, given)
    return LogRecord(offset, now, 0, key, value, ())


def _difference(a: Outcome, b: Outcome) -> str | None:
    for name in ("outputs", "dead_letters", "changes"):
        if getattr(a, name) != getattr(b, name):
            return name.replace("_", " ")
    if [c.records for c in a.sunk] != [c.records for c in b.sunk]:
        return "rows for a sink"
    return None


def _encoder(codec: Any) -> Any:
    schema = codec.values

    def dicts(rows: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = rows.to_pylist() if isinstance(rows, pa.Table) else list(rows)
        return found

    if isinstance(codec, ArrowCodec):

        def encode(rows: Any) -> list[bytes]:
            table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(dicts(rows), schema=schema)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            return [sink.getvalue().to_pybytes()]

        return encode
    pack = msgspec.msgpack.encode if isinstance(codec, MsgpackCodec) else msgspec.json.encode
    return lambda rows: [pack(row) for row in dicts(rows)]


def _json(value: bytes | None) -> Any:
    try:
        return None if value is None else msgspec.json.decode(value)
    except msgspec.DecodeError:
        return value
