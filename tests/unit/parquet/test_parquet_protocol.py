"""Any order of runs, writes, replays, merges, publication and verbs of void runs: one exact batch or an error."""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from millstream.errors import BatchRefusedError, SinkError
from schemas.batch import Run
from schemas.chunk import Chunk
from sinks.base import InstanceRange
from sinks.parquet import ParquetBatches, ParquetConfig
from tests.integration.parquet.data import BATCH, INSTANCE, SLUG, between, chunk


class Feeding:
    """A run with the chunks that it has in the log, and how many of them the sink was given."""

    def __init__(self, number: int, sizes: list[int]) -> None:
        self.run = Run(BATCH, INSTANCE, f"{number:032x}")
        self.begin = number * 1000
        self.chunks: list[Chunk] = []
        first = self.begin + 1
        for size in sizes:
            keys = [b"%d-%d-%d" % (number, first, i) for i in range(size)]
            self.chunks.append(chunk(first, first + size, keys, self.run))
            first += size + 1
        self.where: InstanceRange = between(self.begin, first)
        self.written = 0

    @property
    def keys(self) -> list[bytes]:
        return [k for c in self.chunks for k in c.records["key"].to_pylist()]

    @property
    def whole(self) -> bool:
        return self.written == len(self.chunks)


class Protocol(RuleBasedStateMachine):
    """The last begun run is the valid one."""

    @initialize(sort=st.booleans())
    def begin_first(self, sort: bool) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="parquet-protocol-"))
        self.sink = ParquetBatches(ParquetConfig(self.dir, sort=sort))
        self.feedings: list[Feeding] = []
        self.merged: Feeding | None = None
        self.published: Feeding | None = None
        self.begin([2, 1])

    def teardown(self) -> None:
        if hasattr(self, "dir"):
            shutil.rmtree(self.dir)

    def do(self, verb: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(verb)

    def refused(self, verb: Coroutine[Any, Any, Any]) -> None:
        with pytest.raises((SinkError, BatchRefusedError)):
            self.do(verb)

    @precondition(lambda self: self.published is None and len(self.feedings) < 4)
    @rule(sizes=st.lists(st.integers(0, 3), max_size=3))
    def begin(self, sizes: list[int]) -> None:
        self.feedings.append(Feeding(len(self.feedings), sizes))
        self.do(self.sink.open_batch(self.feedings[-1].run))

    @precondition(lambda self: self.published is None and not self.feedings[-1].whole)
    @rule()
    def write(self) -> None:
        now = self.feedings[-1]
        assert self.do(self.sink.have(now.chunks[now.written])) is None
        self.do(self.sink.write_chunk(now.chunks[now.written]))
        now.written += 1

    @precondition(lambda self: self.published is None and self.feedings[-1].written)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        now = self.feedings[-1]
        again = now.chunks[data.draw(st.integers(0, now.written - 1))]
        self.do(self.sink.open_batch(now.run))
        assert self.do(self.sink.write_chunk(again)) == self.do(self.sink.have(again))

    @precondition(lambda self: self.published is None and self.feedings[-1].written and not self.feedings[-1].whole)
    @rule()
    def merge_too_early(self) -> None:
        self.refused(self.sink.finalize_instance(self.feedings[-1].run, self.feedings[-1].where))

    @precondition(lambda self: self.feedings[-1].whole)
    @rule()
    def merge(self) -> None:
        now = self.feedings[-1]
        assert self.do(self.sink.finalize_instance(now.run, now.where)) == len(now.keys)
        self.merged = now

    @rule()
    def publish(self) -> None:
        now = self.feedings[-1]
        verb = self.sink.finalize_batch(BATCH, {INSTANCE: (now.run, now.where)})
        if self.merged is now:
            self.do(verb)
            self.published = now
        else:
            self.refused(verb)

    @precondition(lambda self: self.published is not None)
    @rule(data=st.data())
    def wake_up_after_publication(self, data: st.DataObject) -> None:  # T7
        old = data.draw(st.sampled_from(self.feedings))
        self.refused(self.sink.open_batch(old.run))
        for late in old.chunks:
            self.refused(self.sink.write_chunk(late))
        self.do(self.sink.abort_run(old.run))

    @precondition(lambda self: len(self.feedings) > 1)
    @rule(data=st.data())
    def wake_up_after_being_voided(self, data: st.DataObject) -> None:  # T7, hole e
        old = data.draw(st.sampled_from(self.feedings[:-1]))
        self.refused(self.sink.open_batch(old.run))
        for late in old.chunks:
            self.refused(self.sink.write_chunk(late))
        self.refused(self.sink.finalize_instance(old.run, old.where))
        self.refused(self.sink.finalize_batch(BATCH, {INSTANCE: (old.run, old.where)}))
        self.do(self.sink.abort_run(old.run))

    @invariant()
    def published_is_exact_or_absent(self) -> None:
        if not hasattr(self, "published"):
            return
        if self.published is None:
            assert not (self.dir / "prod" / SLUG).exists()
            return
        (path,) = (p for p in self.dir.rglob("*") if p.is_file())
        assert path == self.dir / "prod" / SLUG / "127.0.0.1-6379.parquet"
        keys = pq.ParquetFile(path).read(["key"])["key"].to_pylist()
        assert sorted(keys) == sorted(self.published.keys)
        assert {p.name for p in (self.dir / "prod").iterdir()} == {SLUG}


Protocol.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestProtocol = Protocol.TestCase
