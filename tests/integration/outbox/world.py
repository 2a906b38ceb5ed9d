"""Events for tests, written past the library, and what an independent reader finds in the topic."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from millstream.postgres import Connection
from millstream.settings import Settings
from tests.support.kafka import read_all

AGGREGATES = [UUID(int=n) for n in range(1, 100)]


def headers(event_id: UUID, aggregate: UUID, version: int) -> str:
    return json.dumps(
        {
            "event_id": str(event_id),
            "event_type": "video.updated",
            "aggregate_id": str(aggregate),
            "aggregate_type": "video",
            "version": str(version),
            "occurred_at": "2026-11-23T08:00:00Z",
            "schema_version": "v1",
        }
    )


async def insert(
    connection: Connection, aggregate: int | UUID, version: int, payload: bytes = b"x", kind: str = "video"
) -> UUID:
    """One event; `aggregate` may be its number."""
    event_id, aggregate = uuid4(), AGGREGATES[aggregate] if isinstance(aggregate, int) else aggregate
    await connection.execute(
        "INSERT INTO catalog.outbox_events (event_id, aggregate_type, aggregate_id, event_type, version, payload, "
        "headers) VALUES ($1, $6, $2, 'video.updated', $3, $4, $5)",
        event_id, aggregate, version, payload, headers(event_id, aggregate, version), kind,
    )  # fmt: skip
    return event_id


async def insert_many(connection: Connection, aggregates: int, versions: int, after: int = 0) -> int:
    """`versions` events of each of `aggregates`, mixed, above version `after`; how many."""
    await connection.execute(
        """
        INSERT INTO catalog.outbox_events (aggregate_type, aggregate_id, event_type, version, payload)
        SELECT 'video', ('00000000-0000-0000-0000-' || lpad(a::text, 12, '0'))::uuid, 'video.updated', $3 + v,
               convert_to(a || ':' || $3 + v, 'UTF8')
          FROM generate_series(1, $2::int) v, generate_series(1, $1::int) a
        """,
        aggregates,
        versions,
        after,
    )
    return aggregates * versions


class Read(NamedTuple):
    """A record, as a reader sees it who knows nothing of us."""

    key: str
    version: int
    event_id: str
    value: bytes
    headers: dict[str, str]


def read(kafka: str, topic: str) -> list[Read]:
    """The topic, in the order of each partition."""
    found = []
    for message in read_all(kafka, topic):
        assert len({name for name, _ in message.headers()}) == len(message.headers()), "a header stands twice"
        told = {name: value.decode() for name, value in message.headers()}
        found.append(Read(message.key().decode(), int(told["version"]), told["event_id"], message.value(), told))
    return found


def first_seen(records: Iterable[Read]) -> dict[str, list[int]]:
    """Versions of each aggregate, in the order in which a reader first sees them."""
    seen: dict[str, list[int]] = {}
    for record in records:
        versions = seen.setdefault(record.key, [])
        if record.version not in versions:
            versions.append(record.version)
    return seen


def assert_in_order(records: Iterable[Read]) -> None:
    for key, versions in first_seen(records).items():
        assert versions == sorted(versions), f"{key}: {versions}"


async def rows(connection: Connection, what: str = "version") -> dict[Any, Any]:
    """State of all rows: version -> row (or by another column)."""
    return {row[what]: row for row in await connection.fetch("SELECT * FROM catalog.outbox_events ORDER BY seq")}


async def unpublished(connection: Connection) -> int:
    count: int = await connection.fetchval("SELECT count(*) FROM catalog.outbox_events WHERE published_at IS NULL")
    return count


def make_settings(kafka: str, topic: str, **values: Any) -> Settings:
    """Quick ones."""
    defaults: dict[str, Any] = {
        "bootstrap_servers": kafka,
        "outbox_topics": {"video": topic},
        "outbox_publish_timeout": 10.0,
        "outbox_backoff": 0.05,
        "outbox_backoff_max": 0.2,
        "outbox_poll_min": 0.05,
        "outbox_poll_max": 0.5,
    }
    return Settings(**(defaults | values))


async def read_async(kafka: str, topic: str) -> list[Read]:
    return await asyncio.to_thread(read, kafka, topic)
