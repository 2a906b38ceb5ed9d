"""The projection computed again, event by event, in plain Python: what the database must hold, however it got there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from asyncpg import Record

from millstream.postgres import Connection
from schemas.chunk import Chunk, ChunkId
from schemas.events import CREATED, DELETED, Event, encode_json, encode_protobuf, headers_of
from schemas.events.codec import EventCodec
from schemas.events.envelope import JSON, PROTOBUF
from schemas.log_records import LogRecord
from sinks.postgres import VideoProjection

FIELDS = (
    "uploader_id", "title", "description", "duration_micros", "status", "media_status", "analysis_status",
    "thumbnail_url", "hls_master_playlist", "difficulty", "summary", "tags", "raw_subtitle_url", "published_at",
)  # fmt: skip
COLUMNS = ("version", "created_version", "deleted_version", "events_applied", "visible", "occurred_at", "created_at")
Row = dict[str, Any]


def fold(events: Iterable[Event]) -> dict[str, Row]:
    """Video -> its row."""
    by_video: dict[str, dict[str, Event]] = {}
    for event in events:
        by_video.setdefault(event.aggregate_id, {})[event.event_id] = event
    return {video: _row(list(found.values())) for video, found in by_video.items()}


def _row(events: list[Event]) -> Row:
    ordered = sorted(events, key=lambda e: (e.version, e.event_id))
    created = max((e.version for e in ordered if e.event_type == CREATED), default=0)
    deleted = max((e.version for e in ordered if e.event_type == DELETED), default=0)
    row: Row = dict.fromkeys(FIELDS) | {"created_at": None}
    for event in ordered:
        if event.version > deleted:
            row |= event.payload
            if event.event_type == CREATED:
                row["created_at"] = event.occurred_at
    if row["published_at"] is not None:
        row["published_at"] = datetime.fromisoformat(row["published_at"])
    return row | {
        "version": ordered[-1].version,
        "created_version": created,
        "deleted_version": deleted,
        "events_applied": len(ordered),
        "visible": created > deleted,
        "occurred_at": ordered[-1].occurred_at,
    }


async def held(connection: Connection, schema: str = "catalog") -> dict[str, Row]:
    """What the table holds, in the same form."""
    rows = await connection.fetch(f"SELECT * FROM {schema}.video_projection")
    return {str(row["video_id"]): _plain(row) for row in rows}


def _plain(row: Record) -> Row:
    found = {name: row[name] for name in (*FIELDS, *COLUMNS)}
    return found | {"uploader_id": None if row["uploader_id"] is None else str(row["uploader_id"])}


async def errors(connection: Connection) -> list[Row]:
    """The recorded errors, by kind and offset."""
    rows = await connection.fetch('SELECT * FROM catalog.projection_errors ORDER BY kind, "offset"')
    return [dict(row) | {"headers": json.loads(row["headers"] or "null")} for row in rows]


def record(event: Event, offset: int, *, as_json: bool = False, **headers: str) -> LogRecord:
    """The event as a record of the log."""
    value = encode_json(event) if as_json else encode_protobuf(event)
    pairs = headers_of(event, JSON if as_json else PROTOBUF) | headers
    sent = [(name, text.encode()) for name, text in pairs.items()]
    return LogRecord(offset, 0, 0, event.aggregate_id.encode(), value, sent)


def chunk_of(records: list[LogRecord], topic: str = "catalog.video.events") -> Chunk:
    """The records as the sink gets them; poison among them is left out."""
    at = ChunkId(topic, "tid", 0, 0, records[0].offset, records[-1].offset, 1)
    return Chunk(at, EventCodec().decode(records).table)


async def apply(connection: Connection, *events: Event) -> None:
    """The events as one chunk, in one transaction."""
    async with connection.transaction():
        await VideoProjection()(connection, chunk_of([record(e, i) for i, e in enumerate(events)]))
