"""Sinks in memory, for tests of agents and streams, ours and yours. They keep the promises of the real ones."""

from __future__ import annotations

from collections import defaultdict, deque

import pyarrow as pa

from millstream.errors import BatchRefusedError, IdentityMismatchError, SinkError
from schemas.batch import Batch, Run
from schemas.chunk import Chunk, Receipt
from sinks.base import InstanceRange


class MemorySink:
    """Takes chunks of any stream. `fail` makes its next calls fail; `calls` tells which calls it had."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.chunks: dict[str, Chunk] = {}
        """Chunk id as text -> the chunk as it was first written."""
        self.calls: list[str] = []
        self._faults: dict[str, deque[tuple[Exception, bool]]] = defaultdict(deque)

    def fail(self, operation: str, *errors: Exception, after: bool = False) -> None:
        """The next calls of `operation` raise these errors, one each; with `after` once their work is done (T32)."""
        self._faults[operation].extend((error, after) for error in errors)

    @property
    def table(self) -> pa.Table | None:
        """All rows, in the order of topic, partition and offset; None without any."""
        chunks = sorted(self.chunks.values(), key=lambda c: (c.id.topic, c.id.partition, c.id.first))
        return pa.concat_tables([c.records for c in chunks]) if chunks else None

    async def open(self) -> None:
        """Nothing to open."""
        self._fault("open", after=False)
        self._fault("open", after=True)

    async def close(self) -> None:
        """Keeps what it has: a test looks at it afterwards."""
        self.calls.append("close")

    async def have(self, chunk: Chunk) -> Receipt | None:
        """Raises IdentityMismatchError if another chunk stands under this id (hole b)."""
        self._fault("have", after=False)
        found = self.chunks.get(str(chunk.id))
        receipt = self._receipt(found, chunk) if found else None
        self._fault("have", after=True)
        return receipt

    async def write_chunk(self, chunk: Chunk) -> Receipt:
        """Raises IdentityMismatchError if another chunk stands under this id (hole b)."""
        self._fault("write_chunk", after=False)
        receipt = self._receipt(self.chunks.setdefault(str(chunk.id), chunk), chunk)
        self._fault("write_chunk", after=True)
        return receipt

    def _receipt(self, found: Chunk, chunk: Chunk) -> Receipt:
        if found.id.crc != chunk.id.crc or found.rows != chunk.rows:
            raise IdentityMismatchError(
                f"sink {self.name} holds chunk {chunk.id} with crc {found.id.crc:08x} and {found.rows} rows; "
                f"this one has crc {chunk.id.crc:08x} and {chunk.rows} rows"
            )
        return Receipt(self.name, found.rows, found.records.nbytes)

    def _fault(self, operation: str, *, after: bool) -> None:
        if not after:
            self.calls.append(operation)
        faults = self._faults[operation]
        if faults and faults[0][1] is after:
            raise faults.popleft()[0]


class MemoryBatchSink(MemorySink):
    """Takes dump records and publishes whole batches: `published[batch][instance]` is the table of its rows."""

    def __init__(self, name: str = "memory") -> None:
        super().__init__(name)
        self.published: dict[Batch, dict[str, pa.Table]] = {}
        self._valid: dict[tuple[Batch, str], str] = {}
        self._void: set[str] = set()
        self._published_runs: dict[Batch, dict[str, str]] = {}

    async def open_batch(self, run: Run) -> None:
        """Raises BatchRefusedError if the batch was published, SinkError if a later run voided this one."""
        self._fault("open_batch", after=False)
        if run.batch in self.published:
            raise BatchRefusedError(f"sink {self.name}: batch {run.batch.key} was published already")
        self._check_valid(run)
        earlier = self._valid.get((run.batch, run.instance))
        if earlier is not None and earlier != run.run_id:
            self._drop(earlier)
        self._valid[run.batch, run.instance] = run.run_id
        self._fault("open_batch", after=True)

    async def write_chunk(self, chunk: Chunk) -> Receipt:
        """Raises SinkError if the chunk's run is not open."""
        if chunk.run is None or self._valid.get((chunk.run.batch, chunk.run.instance)) != chunk.run.run_id:
            raise SinkError(f"sink {self.name}: chunk {chunk.id} belongs to no open run ({chunk.run})")
        return await super().write_chunk(chunk)

    async def finalize_instance(self, run: Run, where: InstanceRange) -> int:
        """The rows of the run. Raises SinkError if its chunks leave a gap."""
        self._fault("finalize_instance", after=False)
        self._check_valid(run)
        rows = sum(chunk.rows for chunk in self._chunks(run, where))
        self._fault("finalize_instance", after=True)
        return rows

    async def finalize_batch(self, batch: Batch, runs: dict[str, tuple[Run, InstanceRange]]) -> None:
        """Raises BatchRefusedError if the batch was published from other runs; the same again is no error (T31)."""
        self._fault("finalize_batch", after=False)
        ids = {instance: run.run_id for instance, (run, _) in runs.items()}
        if self._published_runs.setdefault(batch, ids) != ids:
            raise BatchRefusedError(f"sink {self.name}: batch {batch.key} was published from other runs")
        if batch not in self.published:
            self.published[batch] = {
                instance: pa.concat_tables([c.records for c in chunks]) if chunks else pa.table({})
                for instance, chunks in ((i, self._chunks(run, where)) for i, (run, where) in runs.items())
            }
        self._fault("finalize_batch", after=True)

    async def abort_run(self, run: Run) -> None:
        """Drops the chunks of the run unless its batch is published."""
        self._fault("abort_run", after=False)
        if run.batch not in self.published:
            self._drop(run.run_id)
        self._fault("abort_run", after=True)

    def _check_valid(self, run: Run) -> None:
        if run.run_id in self._void:
            raise SinkError(f"sink {self.name}: run {run.run_id} of {run.instance!r} is void")

    def _drop(self, run_id: str) -> None:
        self._void.add(run_id)
        self.chunks = {k: c for k, c in self.chunks.items() if not (c.run and c.run.run_id == run_id)}

    def _chunks(self, run: Run, where: InstanceRange) -> list[Chunk]:
        chunks = sorted(
            (c for c in self.chunks.values() if c.run == run and where.begin < c.id.first and c.id.last < where.done),
            key=lambda c: c.id.first,
        )
        expected = where.begin + 1
        for chunk in chunks if where.exclusive else ():
            if chunk.id.first != expected:
                gap = f"offsets {expected} to {chunk.id.first - 1}"
                raise SinkError(f"sink {self.name}: run {run.run_id} of {run.instance!r} lacks {gap}")
            expected = chunk.id.last + 1
        return chunks
