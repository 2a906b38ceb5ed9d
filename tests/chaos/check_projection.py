"""What the projection must be, computed from its topic event by event, against what Postgres and Kafka hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import asyncpg
from confluent_kafka import Message

from schemas.events import Event, InvalidEventError, UndecodableEventError, decode
from tests.support.kafka import read_all
from tests.support.projection import fold, held

At = tuple[int, int]
Judge = Callable[[dict[Any, Any], Any], dict[str, int]]


def check_projection(kafka: str, name: str, postgres: str, judge: Judge) -> dict[str, dict[str, int]]:
    """Inbox, projection, recorded errors, dead letters and table of versions, each exactly."""
    topic = f"{name}-events"
    events: list[Event] = []
    refused: dict[At, str] = {}
    poison: dict[At, bool] = {}
    messages = read_all(kafka, topic, timeout=120)
    for m in messages:
        at = (m.partition() or 0, m.offset() or 0)
        try:
            events.append(decode(m.value(), _headers(m), m.key()))
        except InvalidEventError as e:
            refused[at] = e.kind
        except UndecodableEventError:
            poison[at] = True
    inbox, rows, errors = asyncio.run(_read(postgres))
    versions: dict[str, int] = {}
    for e in events:
        versions[e.aggregate_id] = max(versions.get(e.aggregate_id, 0), e.version)
    table = {
        json.loads(m.key() or b"null"): json.loads(m.value() or b"null")
        for m in read_all(kafka, f"{name}-projection_versions-changelog", timeout=120)
    }
    letters = [dict(_headers(m)) for m in read_all(kafka, f"{topic}.dlq", timeout=120)] if poison else []
    return {
        "input": {"rows": len(messages)},
        "inbox": judge({e.event_id: (e.aggregate_id, e.version) for e in events}, inbox),
        "projection": judge(fold(events), rows.items()),
        "errors": judge(refused, errors),
        "dead letters": judge(poison, ((_place(h), True) for h in letters)),
        "table": judge(versions, table.items()),
    }


async def _read(url: str) -> tuple[list[Any], dict[str, Any], list[Any]]:
    connection = await asyncpg.connect(url)
    try:
        inbox = await connection.fetch("SELECT event_id, aggregate_id, version FROM catalog.inbox_events")
        errors = await connection.fetch(
            'SELECT partition, "offset", kind FROM catalog.projection_errors, generate_series(1, seen)'
            " WHERE kind NOT IN ('equal_version', 'not_applied')"
        )
        return (
            [(str(r["event_id"]), (str(r["aggregate_id"]), r["version"])) for r in inbox],
            await held(connection),
            [((r["partition"], r["offset"]), r["kind"]) for r in errors],
        )
    finally:
        await connection.close()


def _headers(message: Message) -> list[tuple[str, bytes | None]]:
    return [(name, value) for name, value in message.headers() or [] if not isinstance(value, str)]


def _place(headers: dict[str, bytes | None]) -> At:
    return int(headers["millstream.dlq.partition"] or 0), int(headers["millstream.dlq.offset"] or 0)
