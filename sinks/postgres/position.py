"""The receipt of a partition's last chunk (`millstream.positions`): what makes a write happen once.

Ranges tile a partition's log in order, and only the last one can be met again: by a successor that replays it, or by a
paused owner that wakes up late. So one row per partition says whether a chunk is written, still to come, or foreign.
"""

from __future__ import annotations

import json

from asyncpg import Record

from millstream.errors import IdentityMismatchError, SinkError
from millstream.postgres import Connection, load
from schemas.chunk import Chunk, ChunkId, Receipt

_SQL = load("sinks.postgres", "positions.sql")


async def have(connection: Connection, sink: str, name: str, chunk: Chunk) -> Receipt | None:
    """The receipt if the chunk is written; None if it is to come.

    Raises SinkError if a later chunk is on record: this worker lost the partition. IdentityMismatchError otherwise.
    """
    row = await connection.fetchrow(_SQL["get"], sink, chunk.id.topic, chunk.id.partition)
    return _receipt(row, name, chunk)


async def lock(connection: Connection, sink: str, name: str, chunk: Chunk) -> Receipt | None:
    """Like `have`, and no other session takes this partition's chunks until the transaction ends."""
    # An advisory lock and not the row's: before the first chunk there is no row.
    await connection.execute(_SQL["lock"], f"{sink}/{chunk.id.topic}/{chunk.id.partition}")
    return await have(connection, sink, name, chunk)


async def advance(connection: Connection, sink: str, chunk: Chunk, receipt: Receipt) -> None:
    """Put the chunk on record, in the transaction that holds its rows."""
    at = chunk.id
    await connection.execute(
        _SQL["advance"], sink, at.topic, at.partition, at.topic_id, at.epoch, at.first, at.last, at.crc, receipt.rows,
        json.dumps(receipt.details),
    )  # fmt: skip


def _receipt(row: Record | None, name: str, chunk: Chunk) -> Receipt | None:
    if row is None:
        return None
    at, held = chunk.id, f"{row['topic_id']}, epoch {row['epoch']}, {row['first']}..{row['last']}"
    if row["topic_id"] != at.topic_id:
        if row["epoch"] < at.epoch:
            return None
        raise _mismatch(name, at, held, "of a topic with another id: it was deleted and made anew")
    if row["epoch"] != at.epoch:
        if row["epoch"] < at.epoch:
            return None  # `millstream reset` came between
        raise _mismatch(name, at, held, "of a later epoch: `millstream reset` was run while this worker was away")
    if row["last"] < at.first:
        return None
    if row["first"] > at.last:
        raise SinkError(
            f"sink {name}: this worker lost {at.topic}[{at.partition}]: millstream.positions holds a later chunk "
            f"({held}) than {at.first}..{at.last}; nothing was written. If no other worker runs, the group's "
            "offsets were set back: `millstream reset` raises the epoch"
        )
    if (row["first"], row["last"], row["crc"]) != (at.first, at.last, at.crc):
        raise _mismatch(name, at, held, "of another range")
    return Receipt(name, row["rows"], details=json.loads(row["details"]))


def _mismatch(name: str, at: ChunkId, held: str, what: str) -> IdentityMismatchError:
    return IdentityMismatchError(
        f"sink {name}, topic {at.topic} ({at.topic_id}), partition {at.partition}, epoch {at.epoch}, offsets "
        f"{at.first}..{at.last}: millstream.positions holds a chunk ({held}) {what}. Nothing was written; see "
        "docs/operations.md, `millstream reset`"
    )
