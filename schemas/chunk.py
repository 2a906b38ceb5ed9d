"""A chunk: a range of one topic partition's log, and what a sink gets of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pyarrow as pa

from schemas.batch import Run


@dataclass(frozen=True, slots=True)
class ChunkId:
    """Identity of a chunk: the same for every worker that ever processes this range (design section 4, rule 8)."""

    topic: str
    topic_id: str
    """Kafka's id of the topic (22 characters, base64url): a topic made anew under the same name has another one."""
    epoch: int
    """Stream epoch, raised by `millstream reset`."""
    partition: int
    first: int
    """First offset of the range: the group offset when the chunk was planned, so ranges tile the log without gaps."""
    last: int
    """Last offset of the range, included."""
    crc: int = 0
    """CRC-32 over the CRCs of the record batches the range touches."""
    attempt: int = 0
    """Part of the sink's idempotency key; raised by a fenced transaction only (hole a)."""
    generation: int = 0
    """Consumer group generation of the worker that holds the chunk now: the fence, not part of the identity."""

    def __str__(self) -> str:
        return f"{self.topic_id}-{self.epoch}-{self.partition}-{self.first:020d}-{self.last:020d}"

    @property
    def token(self) -> str:
        """Idempotency key of the current attempt."""
        return f"{self}-{self.attempt}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a sink writes: rows of one range; for dump records, the rows of one run of one instance in it (RU-7)."""

    id: ChunkId
    records: pa.Table
    """The rows, with `_offset: int64` (offset of the Kafka record a row came from) as last column."""
    run: Run | None = None
    """The feeding run (batch, instance) that the rows belong to; None for streams without batches."""
    replayed: bool = False
    """The range was planned by an earlier life: the sink may hold it already."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.records.num_rows)

    def at_attempt(self, attempt: int) -> Chunk:
        """The same chunk under a raised attempt."""
        return replace(self, id=replace(self.id, attempt=attempt))


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a write gave; `have` gives back the same for a chunk that the sink holds already (hole h)."""

    sink: str
    rows: int
    """Rows of the chunk that are durable in the sink."""
    bytes: int = 0
    details: dict[str, str] = field(default_factory=dict)
