"""Messages of the logical decoding plugin `pgoutput`, protocol version 1, as far as inserts need them.

Formats: PostgreSQL documentation, "Logical Replication Message Formats".
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from millstream.errors import PostgresError

_NULL, _BINARY = b"nb"
Row = dict[str, bytes | None]
"""Column -> value in the binary format of its type; None: NULL."""


class Begin(NamedTuple):
    """A committed transaction follows."""

    commit_lsn: int
    """Where its commit record begins: tells transactions apart."""


class Insert(NamedTuple):
    """One row."""

    relation: str
    """`schema.table`."""
    row: Row


class Commit(NamedTuple):
    """The end of a transaction."""

    end_lsn: int
    """Behind its commit record: whoever has this transaction goes on from here."""


class Decoder:
    """Remembers the tables that the stream has described."""

    def __init__(self) -> None:
        self._relations: dict[int, tuple[str, list[str]]] = {}

    def __call__(self, data: bytes) -> Begin | Insert | Commit | None:
        """One message; None for those that say nothing to us. Raises PostgresError for what cannot be read."""
        try:
            return self._decode(data)
        except (struct.error, IndexError, KeyError, ValueError) as e:
            raise PostgresError(
                f"pgoutput message of {len(data)} bytes cannot be read ({type(e).__name__}: {e}): {data[:40].hex()}"
            ) from e

    def _decode(self, data: bytes) -> Begin | Insert | Commit | None:
        match data[:1]:
            case b"I":
                (relation,) = struct.unpack_from("!I", data, 1)
                name, columns = self._relations[relation]
                if data[5:6] != b"N":
                    raise ValueError(f"an insert with a tuple of kind {data[5:6]!r}")
                return Insert(name, _row(data, 6, columns))
            case b"B":
                return Begin(struct.unpack("!xqqi", data)[0])  # and the time, and the transaction's id
            case b"C":
                return Commit(struct.unpack("!xBqqq", data)[2])  # behind flags and the commit's own LSN
            case b"R":
                self._relation(data)
            case b"":
                raise ValueError("it is empty")
        return None

    def _relation(self, data: bytes) -> None:
        (relation,) = struct.unpack_from("!I", data, 1)
        schema, at = _text(data, 5)
        table, at = _text(data, at)
        (count,) = struct.unpack_from("!h", data, at + 1)
        at, columns = at + 3, []
        for _ in range(count):
            name, at = _text(data, at + 1)
            columns.append(name)
            at += 8
        if at != len(data):
            raise ValueError(f"a table of {count} columns ends at {at}")
        self._relations[relation] = f"{schema}.{table}", columns


def _row(data: bytes, at: int, columns: list[str]) -> Row:
    (count,) = struct.unpack_from("!h", data, at)
    if count != len(columns):
        raise ValueError(f"a row of {count} columns for a table of {len(columns)}")
    at, row, end = at + 2, Row(), len(data)
    for name in columns:
        kind, at = data[at], at + 1
        if kind == _NULL:
            row[name] = None
            continue
        if kind != _BINARY:
            raise ValueError(f"column {name!r} is of kind {bytes((kind,))!r}, not binary")
        start = at + 4
        at = start + int.from_bytes(data[at:start], "big")
        if at > end:
            raise ValueError(f"column {name!r} is cut off")
        row[name] = data[start:at]
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes behind a row")
    return row


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at)
    return data[at:end].decode(), end + 1
