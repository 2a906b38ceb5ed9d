"""Records of a log by column: a list per field where aiokafka makes an object per record.

A chunk of 50,000 record objects costs more to keep (memory, and the garbage collector's visits) than to decode.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple, overload

Headers = Sequence[tuple[str, bytes | None]]


class LogRecord(NamedTuple):
    """One record, as it is asked for."""

    offset: int
    timestamp: int
    """Milliseconds since 1970-01-01 UTC."""
    timestamp_type: int
    """0: set by the producer, 1: by the broker."""
    key: bytes | None
    value: bytes | None
    headers: Headers
    checksum: None = None


class LogRecords(Sequence[LogRecord]):
    """Records in log order. What no record has (keys, headers) takes no room."""

    __slots__ = ("_headers", "_keys", "_timestamps", "_types", "offsets", "values")

    def __init__(
        self,
        offsets: range | array[int],
        values: list[bytes | None],
        timestamps: array[int],
        types: bytes,
        keys: list[bytes | None] | None,
        headers: list[Headers] | None,
    ) -> None:
        self.offsets, self.values = offsets, values
        self._timestamps, self._types, self._keys, self._headers = timestamps, types, keys, headers

    @classmethod
    def of(cls, records: Sequence[Any]) -> LogRecords:
        """From record objects with the attributes of LogRecord."""
        count = len(records)
        keys = [r.key for r in records]
        headers = [r.headers for r in records]
        gapless = count == 0 or records[-1].offset - records[0].offset == count - 1
        first = records[0].offset if count else 0
        return cls(
            range(first, first + count) if gapless else array("q", [r.offset for r in records]),
            [r.value for r in records],
            array("q", [r.timestamp for r in records]),
            bytes([r.timestamp_type for r in records]),
            keys if keys.count(None) < count else None,
            headers if any(headers) else None,
        )

    @property
    def keys(self) -> list[bytes | None]:
        """The keys."""
        return [None] * len(self) if self._keys is None else self._keys

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, at: int) -> LogRecord: ...
    @overload
    def __getitem__(self, at: slice) -> LogRecords: ...
    def __getitem__(self, at: int | slice) -> LogRecord | LogRecords:
        keys, headers = self._keys, self._headers
        if isinstance(at, slice):
            return LogRecords(
                self.offsets[at],
                self.values[at],
                self._timestamps[at],
                self._types[at],
                None if keys is None else keys[at],
                None if headers is None else headers[at],
            )
        return LogRecord(
            self.offsets[at],
            self._timestamps[at],
            self._types[at],
            None if keys is None else keys[at],
            self.values[at],
            () if headers is None else headers[at],
        )

    def __iter__(self) -> Iterator[LogRecord]:
        return map(
            LogRecord,
            self.offsets,
            self._timestamps,
            self._types,
            repeat(None) if self._keys is None else self._keys,
            self.values,
            repeat(()) if self._headers is None else self._headers,
        )


def join(parts: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """The records of all parts, in order."""
    if len(parts) == 1:
        return parts[0]
    columns = [p for p in parts if isinstance(p, LogRecords)]
    if not columns or len(columns) < len(parts):
        return list(chain.from_iterable(parts))
    offsets = columns[0].offsets
    for p in columns[1:]:
        if not (isinstance(offsets, range) and isinstance(p.offsets, range) and p.offsets.start == offsets.stop):
            offsets = array("q", chain.from_iterable(p.offsets for p in columns))
            break
        offsets = range(offsets.start, p.offsets.stop)
    return LogRecords(
        offsets,
        list(chain.from_iterable(p.values for p in columns)),
        array("q", b"".join(p._timestamps for p in columns)),
        b"".join(p._types for p in columns),
        list(chain.from_iterable(p.keys for p in columns)) if any(p._keys is not None for p in columns) else None,
        list(chain.from_iterable(p._headers or [()] * len(p) for p in columns))
        if any(p._headers is not None for p in columns)
        else None,
    )


def values_of(records: Iterable[Any]) -> list[Any]:
    """The values."""
    return records.values if isinstance(records, LogRecords) else [r.value for r in records]


def keys_of(records: Iterable[Any]) -> list[Any]:
    """The keys."""
    return records.keys if isinstance(records, LogRecords) else [r.key for r in records]
