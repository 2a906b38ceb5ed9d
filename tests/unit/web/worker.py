"""A worker to look at, without Kafka: what the observer reads, set by hand."""

from __future__ import annotations

import time
from array import array
from types import SimpleNamespace
from typing import Any

from aiohttp import web

from millstream.cluster import TP
from millstream.settings import Settings
from schemas.chunk import ChunkId
from schemas.log_records import LogRecords
from sinks.wrapper import SinkGroup
from streams.engine.chunk import Chunk
from streams.engine.fetch import Fetched
from streams.engine.observer import Observer
from streams.engine.partition import Limits, PartitionState
from streams.engine.plan import Plan, Position
from streams.engine.task import Task
from streams.engine.topology import Source, TaskKey, Topology


def records(first: int, n: int, at_ms: int) -> LogRecords:
    return LogRecords(range(first, first + n), [b"v"] * n, array("q", [at_ms] * n), b"\0" * n, None, None)


class Looked:
    """An app with partitions `tps`, all at offset 10."""

    def __init__(self, *tps: TP, sinks: Any = (), **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.parts = {tp: PartitionState(Position(10, "id", 1), Limits(100, 1 << 20, 1.0)) for tp in tps}
        self.tasks = {}
        for tp, part in self.parts.items():
            key = TaskKey("f", f"{tp.topic}-{tp.partition}")
            self.tasks[key] = task = Task(key)
            task.parts[tp] = part
        self.sink_groups = [SinkGroup(sinks, retry_initial=0.001)] if sinks else []
        self.tables: dict[str, Any] = {}
        self.recovery = SimpleNamespace(progress={})
        self.should_stop = False
        self.topology = Topology(Source((name,), None, None, None) for name in sorted({tp.topic for tp in tps}))
        now = time.monotonic()
        self._consumer: Any = SimpleNamespace(
            cycle=SimpleNamespace(tasks=self.tasks, epoch=1, member=object(), draining=False),
            reading=SimpleNamespace(parts=self.parts),
            assigned=len(tps), lost_since=None, attended=now, looked=now, flow_active=True, started=True,
            joined_as=(3, "m"),
        )  # fmt: skip
        self.web = SimpleNamespace(web_app=web.Application())
        self.observer = Observer(self)  # type: ignore[arg-type]

    def task(self, tp: TP) -> Task:
        return next(task for task in self.tasks.values() if tp in task.parts)

    def read(self, tp: TP, n: int, seconds_old: float) -> None:
        """n records were fetched; the log ends behind them."""
        part = self.parts[tp]
        first = part._read_to
        at_ms = int((time.time() - seconds_old) * 1000)
        part.add([Fetched(first, first + n - 1, 0, records(first, n, at_ms), n)], time.monotonic())
        self.observer._ends[tp] = first + n

    def open(self, tp: TP, seconds: float) -> Chunk:
        """A chunk of what was read is being written, since so many seconds."""
        part = self.parts[tp]
        cut = part._cut(time.monotonic())
        plan = cut.plan()
        part.position = Position(part.position.offset, "id", 1, Plan(plan.first, plan.last, plan.count, plan.crc))
        chunk = Chunk(ChunkId(tp.topic, "id", 1, tp.partition, cut.first, cut.last), cut.records, nbytes=cut.nbytes)
        chunk.begin(1)
        chunk.since = time.monotonic() - seconds
        self.task(tp).open = tp, chunk
        return chunk
