"""The change log of products to `products.changes` (PE-69): at least once, in the order of each product.

A record's `seq` counts the changes of its product: who has seen it, or a later one, skips it. What Kafka refuses three
times is FAILED, with its error, until somebody sets it to PENDING again; an outage fails nothing and ends the command.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from asyncpg import Record

from millstream import tracing
from millstream.errors import BrokerError, ConfigError
from millstream.failpoints import declare, failpoint
from millstream.postgres import Connection, connect, load, naming, postgres_url
from millstream.settings import Settings
from schemas.postgres import require_migrated
from schemas.products import CHANGES_TOPIC
from schemas.products.codec import key_of
from sources.outbox.message import Message
from sources.outbox.publisher import Publisher
from sources.outbox.store import Failure

PUBLISHED = declare("etl.changes.published", "Kafka has acknowledged changes, nothing is marked")
MAX_RETRIES = 3
"""Refusals by Kafka after which a change is FAILED."""
_KIND = "product"
_SQL = load("sources.staging", "changes.sql")


@dataclass
class Published:
    """What a run did."""

    published: int = 0
    failed: list[str] = field(default_factory=list)
    """Changes that were given up, each with its error."""


async def publish_changes(settings: Settings, limit: int) -> Published:
    """Publish all that is pending. Raises ConfigError, BrokerError, PostgresError."""
    url = postgres_url(settings)
    publisher = Publisher(settings.model_copy(update={"outbox_topics": {_KIND: CHANGES_TOPIC}}))
    done = Published()
    with naming("publish changes of products", url):
        async with connect(url) as connection:
            await require_migrated(connection)
            if not await connection.fetchval(_SQL["lock"]):
                raise ConfigError("another `millstream etl changes` is running: one at a time keeps the order")
            await asyncio.to_thread(publisher.prepare)
            for _ in range(MAX_RETRIES):
                if not await _pass(connection, publisher, limit, settings.outbox_publish_timeout, done):
                    break
    return done


async def _pass(connection: Connection, publisher: Publisher, limit: int, seconds: float, done: Published) -> bool:
    """Once through what is pending; whether something was refused or not tried, and is pending still."""
    last, held = 0, set[bytes]()
    while rows := await connection.fetch(_SQL["pending"], last, limit):
        last = rows[-1]["id"]
        with tracing.span("etl changes", attributes={"messaging.batch.message_count": len(rows)}):
            results = await asyncio.to_thread(publish, publisher, rows, held, seconds)
        failpoint(PUBLISHED)
        good = [row["id"] for row, result in zip(rows, results, strict=True) if result is True]
        bad = {row["id"]: r for row, r in zip(rows, results, strict=True) if isinstance(r, Failure)}
        refused = {number: failure.error for number, failure in bad.items() if failure.counts}
        async with connection.transaction():
            await connection.execute(_SQL["processed"], good)
            marked = await connection.fetch(_SQL["failed"], list(refused), list(refused.values()), MAX_RETRIES)
        done.published += len(good)
        done.failed += [_told(row) for row in marked if row["status"] == "FAILED"]
        if outage := [failure.error for failure in bad.values() if not failure.counts]:
            raise BrokerError(f"changes of products: {done.published} published, then: {outage[0]}. Start it again")
    return bool(held)


def publish(publisher: Publisher, rows: Sequence[Record], held: set[bytes], seconds: float) -> list[Failure | bool]:
    """Blocking. For each change what became of it; `held` are products with a change that waits: no later one goes."""
    messages = [_message(publisher.topics[_KIND], row) for row in rows]
    results: list[Failure | bool] = [False] * len(rows)
    fit = []
    for i, message in enumerate(messages):
        if message.key in held:
            continue
        if (reason := publisher.unfit(message)) is not None:
            results[i] = Failure(reason, counts=True)
            held.add(message.key)
        else:
            fit.append(i)
    for i, result in zip(fit, publisher.publish([messages[i] for i in fit], seconds), strict=True):
        results[i] = result
        if result is not True:
            held.add(messages[i].key)
    return results


def _message(topic: str, row: Record) -> Message:
    body = {name: row[name] for name in ("id", "brand_code", "sku", "seq", "data_version", "change_type")}
    value = json.dumps(body | {"created_at": row["created_at"].isoformat()}, ensure_ascii=False).encode()
    return Message(topic, key_of(row["brand_code"], row["sku"]), value, [("content-type", b"application/json")])


def _told(row: Record) -> str:
    return (
        f"change {row['id']} (brand {row['brand_code']!r}, sku {row['sku']!r}, seq {row['seq']}): {row['last_error']}"
    )
