"""State of one partition of a chunk topic, without any I/O: what was read, what is planned, what is open.

READING -> PLANNED -> WRITING -> WRITTEN -> COMMITTED (= READING again); see docs/architecture.md.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from millstream.errors import MillstreamError
from schemas.log_records import join, values_of
from streams.engine.fetch import Fetched
from streams.engine.plan import Plan, Position


class RangeChangedError(MillstreamError):
    """The log no longer holds the planned range as it was planned (retention, compaction, truncation)."""


class Limits(NamedTuple):
    """When a chunk is sealed: whatever comes first."""

    rows: int
    bytes: int
    age: float
    """Seconds since the first record of the chunk was read."""


@dataclass(slots=True)
class Cut:
    """A range cut out of what was read."""

    first: int
    last: int
    crc: int
    records: Sequence[Any]
    control: bool
    """The range holds exactly one record, a control record."""
    nbytes: int
    since: float = field(default=0.0, compare=False)
    """When the first record of what was buffered came, by the monotonic clock."""
    at: float = field(default=0.0, compare=False)
    """When the range was cut."""

    def plan(self) -> Plan:
        """The plan for this range."""
        return Plan(self.first, self.last, len(self.records), self.crc)


class PartitionState:
    """One partition. `position` moves only when a commit moved it."""

    def __init__(
        self,
        position: Position,
        limits: Limits,
        rows: Callable[[Any], int] | None = None,
        is_control: Callable[[Any], bool] | None = None,
    ) -> None:
        self.position = position
        self.limits = limits
        self._rows, self._is_control = rows, is_control
        self._buffer: deque[Fetched] = deque()
        self._since = 0.0
        self._read_to = position.offset
        self.buffered_records = 0
        self.buffered_rows = 0
        self.buffered_bytes = 0
        self._has_control = False

    @property
    def owes_plan(self) -> bool:
        """True while a planned range has not been read to its end."""
        plan = self.position.plan
        return plan is not None and self._read_to <= plan.last

    @property
    def wants_more(self) -> bool:
        """True while fetching for this partition makes sense (back-pressure): two chunks, an open one counts."""
        room = 1 if self.position.plan else 2
        return self.owes_plan or (
            self.buffered_rows < room * self.limits.rows and self.buffered_bytes < room * self.limits.bytes
        )

    def add(self, batches: list[Fetched], now: float) -> None:
        """What a fetch brought, in log order."""
        for b in batches:
            if b.last < self._read_to:
                continue  # empty leftovers of a batch that the position cuts
            if not self.buffered_records:
                self._since = now
            self._buffer.append(b)
            self.buffered_records += len(b.records)
            self._read_to = b.last + 1
            self.buffered_rows += self._count(b.records)
            self.buffered_bytes += b.nbytes
            if self._is_control is not None and not self._has_control:
                self._has_control = any(map(self._is_control, b.records))

    @property
    def since(self) -> float:
        """When the first record that is read and not in a chunk came, by the monotonic clock; 0 before any."""
        return self._since

    @property
    def oldest_ms(self) -> int | None:
        """Timestamp of the first record that is read and not in a chunk. May be asked from any thread."""
        for batch in tuple(self._buffer):
            if len(batch.records):
                return int(batch.records[0].timestamp)
        return None

    def passed(self, position: int) -> None:
        """The log holds nothing more below this position: what is left of a plan there will not come."""
        self._read_to = max(self._read_to, position)

    def ready(self, now: float) -> bool:
        """True if `seal` would cut a chunk now."""
        return self.buffered_records > 0 and (
            self.buffered_rows >= self.limits.rows
            or self.buffered_bytes >= self.limits.bytes
            or self._has_control
            or now - self._since >= self.limits.age
        )

    def due_in(self, now: float) -> float:
        """Seconds until age alone seals what is buffered; infinite without records."""
        return max(0.0, self._since + self.limits.age - now) if self.buffered_records else float("inf")

    def seal(self, now: float) -> Cut | None:
        """Cut the next chunk if one is due: at most `rows` and `bytes` (a single record may be larger)."""
        return self._cut(now) if self.ready(now) else None

    def replay(self, now: float) -> Cut | None:
        """Cut exactly the planned range once all of it was read. Raises RangeChangedError if it is not the same."""
        plan = self.position.plan
        if plan is None or self.owes_plan:
            return None
        taken: list[Fetched] = []
        while self._buffer and self._buffer[0].first <= plan.last:
            batch = self._buffer.popleft()
            if batch.last > plan.last:
                n = sum(1 for r in batch.records if r.offset <= plan.last)
                head, tail = self._split(batch, n, plan.last)
                self._buffer.appendleft(tail)
                batch = head
            taken.append(batch)
        cut = self._make(plan.first, plan.last, taken, now)
        if len(cut.records) != plan.count or cut.crc != plan.crc:
            raise RangeChangedError(
                f"planned range {plan.first}..{plan.last} held {plan.count} records with crc {plan.crc}; the log now "
                f"gives {len(cut.records)} with crc {cut.crc}. Retention, compaction or truncation took part of it: "
                "restore the topic, or accept the loss with `millstream reset`."
            )
        return cut

    # ------------------------------------------------------------------ cutting
    def _count(self, records: Sequence[Any]) -> int:
        return len(records) if self._rows is None else sum(map(self._rows, records))

    def _cut(self, now: float) -> Cut:
        taken: list[Fetched] = []
        rows = size = 0
        while self._buffer:
            batch = self._buffer[0]
            n, stop = self._room(batch, rows, size, first=not any(b.records for b in taken))
            if n == len(batch.records):
                taken.append(self._buffer.popleft())
            elif n:
                head, tail = batch.split(n)
                self._buffer[0] = tail
                taken.append(head)
            if stop:
                break
            rows += self._count(batch.records)
            size += batch.nbytes
        return self._make(self.position.offset, taken[-1].last, taken, now)

    def _room(self, batch: Fetched, rows: int, size: int, first: bool) -> tuple[int, bool]:
        """How many records of the batch go into the chunk, and whether the chunk ends with them."""
        whole = len(batch.records)
        if not self._has_control and self._rows is None:
            n = self.limits.rows - rows
            if whole <= n and size + batch.nbytes <= self.limits.bytes:
                return whole, whole == n
            for i, value in enumerate(values_of(batch.records)):
                size += len(value or b"")
                if i >= n or (size > self.limits.bytes and not (first and i == 0)):
                    return i, True
            return whole, False
        for i, record in enumerate(batch.records):
            opens = first and i == 0
            if self._is_control is not None and self._is_control(record):
                return (1, True) if opens else (i, True)
            rows += 1 if self._rows is None else self._rows(record)
            size += len(record.value or b"")
            if not opens and (rows > self.limits.rows or size > self.limits.bytes):
                return i, True
        return whole, False

    @staticmethod
    def _split(batch: Fetched, n: int, cut: int) -> tuple[Fetched, Fetched]:
        """Split at an offset: either side may be empty of records, each keeps its offsets."""
        if 0 < n < len(batch.records):
            head, tail = batch.split(n)
        else:
            none = Fetched(batch.first, batch.last, batch.crc, [], 0)
            head, tail = (batch, none) if n else (none, batch)
        return (
            Fetched(head.first, cut, head.crc, head.records, head.nbytes),
            Fetched(cut + 1, batch.last, tail.crc, tail.records, tail.nbytes),
        )

    def _make(self, first: int, last: int, taken: list[Fetched], now: float) -> Cut:
        crc = nbytes = 0
        for b in taken:
            if b.records:
                crc = zlib.crc32(b.crc.to_bytes(4, "big"), crc)
            nbytes += b.nbytes
        records = join([b.records for b in taken if b.records])
        self.buffered_records -= len(records)
        self.buffered_rows -= self._count(records)
        self.buffered_bytes -= nbytes
        since, self._since = self._since, now
        is_control = self._is_control
        if is_control is not None and self._has_control:
            self._has_control = any(is_control(r) for b in self._buffer for r in b.records)
        control = is_control is not None and len(records) == 1 and is_control(records[0])
        return Cut(first, last, crc, records, control, nbytes, since, now)
