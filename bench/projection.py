"""Events of videos into a projection, as the loop does it that one would write by hand. As a contender:

python -m bench.projection
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
from aiokafka import AIOKafkaConsumer

from bench.clock import Clock
from schemas.events import CREATED, UPDATED, Event, encode_protobuf, headers_of
from schemas.events.codec import changes_of
from schemas.events.decode import decode

PLAIN = """
CREATE TABLE plain_projection (video_id uuid PRIMARY KEY, version bigint NOT NULL, fields jsonb NOT NULL)
"""
RECEIVE = """
INSERT INTO catalog.inbox_events (event_id, event_type, aggregate_id, version, digest, topic, partition, "offset")
VALUES ($1, $2, $3, $4, '', $5, $6, $7) ON CONFLICT (event_id) DO NOTHING RETURNING true
"""
UPSERT = """
INSERT INTO plain_projection AS p VALUES ($1, $2, $3::jsonb)
ON CONFLICT (video_id) DO UPDATE SET version = EXCLUDED.version, fields = p.fields || EXCLUDED.fields
 WHERE p.version < EXCLUDED.version
"""
VIDEOS = 1_000


def events(count: int) -> Iterator[Event]:
    """Videos that are created, and then changed again and again, in turns."""
    rng, start = random.Random(1), datetime(2026, 11, 23, 8, tzinfo=UTC)
    for n in range(count):
        version, video = n // VIDEOS + 1, str(UUID(int=n % VIDEOS + 1))
        title = f"video {n % VIDEOS}, cut {version}"
        payload: dict[str, Any] = {"title": title, "description": "as seen on " * 8, "duration_micros": n}
        if version > 1:
            payload = {"title": title, "tags": [f"t{rng.randrange(99)}", "x"], "summary": "what happens in it " * 4}
        yield Event(
            event_id=str(UUID(int=rng.getrandbits(128))), event_type=CREATED if version == 1 else UPDATED,
            aggregate_id=video, version=version, occurred_at=start + timedelta(milliseconds=n), payload=payload,
        )  # fmt: skip


def records(count: int) -> Iterator[tuple[bytes, bytes, list[tuple[str, bytes]]]]:
    """Key, value and headers of each."""
    for event in events(count):
        headers = [(name, text.encode()) for name, text in headers_of(event).items()]
        yield event.aggregate_id.encode(), encode_protobuf(event), headers


async def loop(clock: Clock) -> None:
    """One event at a time: decode, inbox and upsert guarded by the version in one transaction; offsets now and then."""
    connection = await asyncpg.connect(os.environ["MILLSTREAM_POSTGRES_URL"])
    consumer = AIOKafkaConsumer(
        os.environ["BENCH_TOPIC"], bootstrap_servers=os.environ["BENCH_SERVERS"], group_id=os.environ["BENCH_GROUP"],
        auto_offset_reset="earliest", isolation_level="read_committed",
    )  # fmt: skip
    await consumer.start()
    clock.start()
    async for record in consumer:
        event = decode(record.value, record.headers, record.key)
        async with connection.transaction():
            fresh = await connection.fetchval(
                RECEIVE, event.event_id, event.event_type, event.aggregate_id, event.version, record.topic,
                record.partition, record.offset,
            )  # fmt: skip
            if fresh:
                await connection.execute(UPSERT, event.aggregate_id, event.version, changes_of(event).decode())
        if clock.add(1):
            break
    await consumer.stop()
    await connection.close()


if __name__ == "__main__":
    asyncio.run(loop(Clock.from_env()))
