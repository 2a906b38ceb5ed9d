"""What a sink is. Sinks hold no retries and no metrics: `sinks.wrapper` owns those for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from schemas.batch import Batch, Run
from schemas.chunk import Chunk, Receipt


class Sink(Protocol):
    """A place that takes chunks, each exactly once by its identity.

    Transient trouble is raised as RetryableSinkError, everything else as SinkError or a subclass. Every method may be
    called again with the same arguments after any outcome, by this process or another one, also at the same time.
    """

    name: str

    async def open(self) -> None:
        """Check what must be there (directory, schema) and make what may be made. Raises ConfigError or SinkError."""

    async def have(self, chunk: Chunk) -> Receipt | None:
        """The receipt if this very chunk is durable here; None if it must be written (again)."""

    async def write_chunk(self, chunk: Chunk) -> Receipt:
        """Make the chunk durable. Raises AttemptExhaustedError where only a raised attempt can help."""

    async def close(self) -> None:
        """Release what is held. Unfinished work is abandoned, never half published."""


@dataclass(frozen=True, slots=True)
class InstanceRange:
    """Where a run stands in its partition: what `finalize_instance` has to find in the sink."""

    topic_id: str
    epoch: int
    partition: int
    begin: int
    """Offset of the run's `begin` record."""
    done: int
    """Offset of the run's `done` record."""
    exclusive: bool
    """True: no other instance shares the partition, so the run's chunks tile (begin, done) without a gap."""


@runtime_checkable
class BatchSink(Sink, Protocol):
    """A sink that publishes batches of dump records: nothing of a batch is visible before `finalize_batch`."""

    async def open_batch(self, run: Run) -> None:
        """A run begins (a later run voids an earlier one). Raises BatchRefusedError where the batch cannot be taken."""

    async def finalize_instance(self, run: Run, where: InstanceRange) -> int:
        """All chunks of the run were written: make the instance ready. Returns its rows in the sink."""

    async def finalize_batch(self, batch: Batch, runs: dict[str, tuple[Run, InstanceRange]]) -> None:
        """Publish the batch: `runs` is instance -> its valid run. Voided runs go first, the marker last."""

    async def abort_run(self, run: Run) -> None:
        """The run is void: what may be dropped is dropped. Never touches what is published."""
