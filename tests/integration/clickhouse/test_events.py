"""The projection in ClickHouse gives what Postgres gives, row by row, from the same chunks."""

from __future__ import annotations

import json
import random
from datetime import datetime
from typing import Any

import pyarrow.compute as pc
import pytest

from millstream.errors import SinkError
from millstream.postgres import connect
from schemas.chunk import Chunk
from schemas.events import UPDATED, Event
from schemas.events.envelope import EPOCH, MICROSECOND
from sinks.clickhouse.events import COLUMNS, VideoEvents
from sinks.postgres import VideoProjection
from tests.integration.clickhouse.conftest import Place
from tests.support.projection import chunk_of, fold, held, record
from tests.unit.events.events import event, history

NAMES = (
    "version", "created_version", "deleted_version", "events_applied", "visible", "occurred_at", "created_at",
    "uploader_id", "title", "description", "duration_micros", "status", "media_status", "tags", "published_at",
)  # fmt: skip
TIMES = {"occurred_at", "created_at", "published_at"}
SELECT = "SELECT video_id, {} FROM {{db}}.video_projection".format(
    ", ".join(f"{name}_micros" if name in TIMES else name for name in NAMES)
)


async def in_clickhouse(place: Place) -> dict[str, dict[str, Any]]:
    found = {}
    for video, *values in await place.rows(SELECT):
        row = dict(zip(NAMES, values, strict=True))
        row["visible"] = bool(row["visible"])
        row["tags"] = None if row["tags"] is None else json.loads(row["tags"])
        for name in (*NAMES[:4], "duration_micros"):
            row[name] = None if row[name] is None else int(row[name])
        found[video] = row
    return found


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return (value - EPOCH) // MICROSECOND if isinstance(value, datetime) else value

    return {name: plain(row[name]) for name in NAMES}


def as_integers(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: None if row[name] is None else int(row[name]) for name in TIMES}


async def test_both_projections_hold_the_same_row_for_every_video(place: Place, postgres: str) -> None:  # T44-T49, T53
    rng = random.Random(7)
    events = [e for video in range(1, 40) for e in history(rng, video, rng.randint(1, 12))]
    events += [event(UPDATED, 2, 900 + n, video, title=f"tie {n}") for video in (1, 2, 3) for n in (1, 2)]
    sent: list[Event] = [*events, *rng.choices(events, k=60)]
    rng.shuffle(sent)
    sent = [e for e in sent if e.version > 1 or e.aggregate_id[-1] != "5"]  # some are never created
    sink = VideoEvents(place.config())
    await sink.open()
    async with connect(postgres) as connection:
        for first in range(0, len(sent), 90):
            part = sent[first : first + 90]
            records = [record(e, first + i, as_json=i % 2 == 0) for i, e in enumerate(part)]
            records[-1] = record(part[-1], records[-1].offset, schema_version="v7")  # refused by both
            sent[first + len(part) - 1] = part[0]
            chunk = chunk_of(records)
            good = chunk.records.filter(pc.is_null(chunk.records["error_kind"])).select(COLUMNS)
            for _ in range(2):  # once, however often
                await sink.write_chunk(Chunk(chunk.id, good))
            async with connection.transaction():
                await VideoProjection()(connection, chunk)
        wanted = {video: comparable(row) for video, row in (await held(connection)).items()}
    found = {video: as_integers(row) for video, row in (await in_clickhouse(place)).items()}
    assert len(found) == 39
    assert found == wanted == {video: comparable(row) for video, row in fold(sent).items()}
    assert {row["visible"] for row in found.values()} == {True, False}
    await sink.close()


async def test_the_tables_are_made_only_where_that_is_allowed(place: Place) -> None:
    with pytest.raises(SinkError, match="video_events` does not exist") as caught:
        await VideoEvents(place.config(create=False)).open()
    assert "MILLSTREAM_CLICKHOUSE_AUTO_CREATE_TABLES" in caught.value.__notes__[0]
    for create in (True, True, False):
        sink = VideoEvents(place.config(create=create))
        await sink.open()
        await sink.close()
