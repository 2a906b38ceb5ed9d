"""Rows of the projection that differ, made anew out of their events; and events written where none tells of a change.

A row goes and comes in one transaction, through the statements that the workers use. It only goes if every event that
the inbox has of it was found again; else its events are merged into it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from uuid import UUID, uuid4

import asyncpg

from millstream.errors import ConfigError
from millstream.failpoints import declare, failpoint
from millstream.postgres import Connection
from schemas.chunk import Chunk, ChunkId
from schemas.events import AGGREGATE_TYPE, CREATED, DELETED, UPDATED, Event
from schemas.events.codec import EventCodec
from schemas.log_records import LogRecord
from sinks.postgres import VideoProjection
from sources.outbox import OutboxTransaction, transaction
from sources.outbox.message import rfc3339
from sources.outbox.videos import FIELDS
from streams.replay.outbox import NAME, record_of
from streams.replay.slices import ROWS
from streams.replay.topic import TopicSource
from streams.verify.projection import SQL

REPAIRED = declare("verify.repaired", "some keys are repaired, others are not yet")
LIMIT = 50_000
"""Keys that are repaired one by one; beyond it a rebuild is the way."""
AT_ONCE = 500
"""Keys of one transaction."""
TRIES = 5
_CREATED = ("title", "description", "duration_micros", "status", "media_status", "analysis_status")


async def from_events(connection: Connection, source: TopicSource | None, keys: Sequence[str]) -> None:
    """Make the rows of these videos anew, out of what `source` and the outbox have of them."""
    if len(keys) > LIMIT:
        raise ConfigError(
            f"{len(keys)} keys differ, {LIMIT} at most are repaired one by one: `millstream replay --rebuild` builds "
            "the projection anew beside the live one"
        )
    records: dict[str, list[tuple[ChunkId, LogRecord]]] = defaultdict(list)
    if source is not None:
        await source.prepare({})
        wanted = {key.encode() for key in keys}
        async with aclosing(source.slices(ROWS)) as slices:
            async for found in slices:
                for record in found.records:
                    if record.key in wanted:
                        records[record.key.decode()].append((found.at, record))
    for first in range(0, len(keys), AT_ONCE):
        part = keys[first : first + AT_ONCE]
        chunks = await asyncio.to_thread(_chunks, [pair for key in part for pair in records.pop(key, [])])
        rows = await connection.fetch(SQL["outbox"], part, AGGREGATE_TYPE)
        if rows:
            taken = [record_of(row, number) for number, row in enumerate(rows)]
            decoded = await asyncio.to_thread(EventCodec().decode, taken)
            chunks.append(Chunk(ChunkId(NAME, "", 0, 0, 0, len(taken) - 1), decoded.table))
        await _remake(connection, part, chunks)
        failpoint(REPAIRED)


def _chunks(pairs: list[tuple[ChunkId, LogRecord]]) -> list[Chunk]:
    by_partition: dict[int, list[tuple[ChunkId, LogRecord]]] = defaultdict(list)
    for at, record in pairs:
        by_partition[at.partition].append((at, record))
    chunks = []
    for partition, found in by_partition.items():
        records = sorted((record for _, record in found), key=lambda r: r.offset)
        at = ChunkId(found[0][0].topic, found[0][0].topic_id, 0, partition, records[0].offset, records[-1].offset)
        chunks.append(Chunk(at, EventCodec().decode(records).table))
    return chunks


async def _remake(connection: Connection, keys: Sequence[str], chunks: list[Chunk]) -> None:
    columns = ("event_id", "aggregate_id", "error_kind")
    rows = [row for chunk in chunks for row in chunk.records.select(columns).to_pylist() if row["error_kind"] is None]
    found = [row["event_id"] for row in rows], [row["aggregate_id"] for row in rows]
    for left in reversed(range(TRIES)):
        try:
            async with connection.transaction():
                await connection.execute(SQL["lock_rows"], keys)
                await connection.execute(SQL["take_away"], keys, *found)
                for chunk in chunks:
                    await VideoProjection(again=True)(connection, chunk)
            return
        except asyncpg.DeadlockDetectedError:  # a worker took the same rows in another order
            if not left:
                raise


async def by_new_events(connection: Connection, keys: Sequence[str]) -> int:
    """For videos whose rows were changed without an event: write one into the outbox, which goes the usual way (RO-94).

    It tells of the whole row, under a version above all that was seen. Returns how many videos.
    """
    told = 0
    for key in keys:
        async with transaction(connection) as tx:
            told += await _tell(tx, UUID(key))
    return told


async def _tell(tx: OutboxTransaction, video: UUID) -> bool:
    row = await tx.connection.fetchrow(SQL["video"], video)
    held = await tx.connection.fetchrow(SQL["held"], video)
    shown = held is not None and held["visible"]
    told = max(
        await tx.connection.fetchval(SQL["highest"], video, AGGREGATE_TYPE) or 0, 0 if held is None else held["version"]
    )
    # Nobody has heard of the row: then its own version is free.
    version = told if row is None else max(told, row["version"]) if told else row["version"] - 1
    if row is None:
        if shown:
            at = await tx.connection.fetchval("SELECT clock_timestamp()")
            await tx.emit(_event(DELETED, video, version + 1, at, {"deleted_at": rfc3339(at)}))
        return bool(shown)
    anew = held is None or not shown or held["uploader_id"] != row["uploader_id"]
    at = await tx.connection.fetchval(SQL["raise"], video, version + (2 if anew else 1))
    if anew:
        payload = {name: row[name] for name in _CREATED if row[name] is not None}
        await tx.emit(_event(CREATED, video, version + 1, at, payload | {"uploader_id": str(row["uploader_id"])}))
    payload = {name: row[name] for name in FIELDS}
    if payload["published_at"] is not None:
        payload["published_at"] = rfc3339(payload["published_at"])
    await tx.emit(_event(UPDATED, video, version + (2 if anew else 1), at, payload))
    return True


def _event(kind: str, video: UUID, version: int, at: object, payload: object) -> Event:
    return Event(
        event_id=str(uuid4()),
        event_type=kind,
        aggregate_id=str(video),
        version=version,
        occurred_at=at,  # type: ignore[arg-type]
        payload=payload,  # type: ignore[arg-type]
    )
