"""An in-memory partition log of record batches, read as `streams.engine.fetch` reads a real one."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hypothesis import strategies as st

from schemas.log_records import LogRecord, LogRecords
from streams.engine.fetch import Fetched


def Record(
    offset: int,
    value: bytes | None,
    key: bytes | None = None,
    timestamp: int = 1_700_000_000_000,
    headers: Sequence[tuple[str, bytes]] = (),
) -> LogRecord:
    """A record, with what a test does not care about filled in."""
    return LogRecord(offset, timestamp, 0, key, value, headers)


class Batch(NamedTuple):
    """A record batch: offsets first..last, some of which compaction may have emptied."""

    first: int
    last: int
    crc: int
    records: list[LogRecord]


@dataclass
class Log:
    """One partition."""

    batches: list[Batch] = field(default_factory=list)
    end: int = 0

    def append(self, values: Iterable[bytes | None], *, skip: int = 0, drop: Iterable[int] = ()) -> None:
        """Add a batch, `skip` offsets (of control batches) after the last one, without the records at `drop`."""
        values, gone = list(values), set(drop)
        first = self.end + skip
        records = [Record(first + i, v) for i, v in enumerate(values) if i not in gone]
        crc = zlib.crc32(repr((first, values)).encode())
        self.batches.append(Batch(first, first + len(values) - 1, crc, records))
        self.end = first + len(values)

    def fetch(self, position: int, most: int = 1_000_000) -> list[Fetched]:
        """What reading on from `position` brings: whole batches, the first one without what lies before."""
        found = []
        for b in [b for b in self.batches if b.last >= position][:most]:
            records = LogRecords.of([r for r in b.records if r.offset >= position])
            size = sum(len(r.value or b"") for r in records)
            found.append(Fetched(max(b.first, position), b.last, b.crc, records, size))
        return found

    @property
    def records(self) -> list[LogRecord]:
        """Every record."""
        return [r for b in self.batches for r in b.records]


CONTROL = b"!"


@st.composite
def logs(draw: st.DrawFn, controls: bool = True) -> Log:
    """Logs with small and large values, control records, missing offsets, batches emptied by compaction."""
    log = Log(end=draw(st.integers(0, 3)))
    value = st.sampled_from([b"", b"a", b"bb", b"c" * 40, *([CONTROL] if controls else [])])
    for _ in range(draw(st.integers(0, 8))):
        values = draw(st.lists(value, min_size=1, max_size=6))
        drop = draw(st.sets(st.integers(0, 5), max_size=3)) if draw(st.booleans()) else set()
        log.append(values, skip=draw(st.integers(0, 2)), drop=drop)
    return log
