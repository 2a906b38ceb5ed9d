"""Relays of the outbox, and the loop that one would write by hand. As contenders:

python -m bench.outbox loop|polling|replication
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable

import asyncpg
from aiokafka import AIOKafkaProducer

from bench.clock import Clock
from millstream.settings import Settings
from sources.outbox import PollingRelay, ReplicationRelay

PAYLOAD = 300
"""Bytes of an event: an envelope with a handful of fields."""
FILL = f"""
INSERT INTO catalog.outbox_events (event_id, aggregate_type, aggregate_id, event_type, version, payload, headers)
SELECT id, 'video', aggregate, 'video.updated', version, convert_to(rpad(id::text, {PAYLOAD}, '.'), 'UTF8'),
       jsonb_build_object('event_id', id, 'event_type', 'video.updated', 'aggregate_id', aggregate, 'aggregate_type',
                          'video', 'version', version::text, 'occurred_at', '2026-11-23T08:00:00.123456Z',
                          'schema_version', 'v1', 'content-type', 'application/x-protobuf')
  FROM (SELECT gen_random_uuid() AS id, md5((n % 1000)::text)::uuid AS aggregate, n / 1000 + 1 AS version
          FROM generate_series(0, $1::int - 1) n ORDER BY n) AS events
"""
CLAIM = """
SELECT event_id, aggregate_id::text AS key, payload, headers::text AS headers FROM catalog.outbox_events
 WHERE published_at IS NULL AND available_at <= now() ORDER BY seq LIMIT 1 FOR UPDATE SKIP LOCKED
"""
MARK = "UPDATE catalog.outbox_events SET published_at = now() WHERE event_id = $1"


async def loop(clock: Clock) -> None:
    """One event at a time: claim, send, await the acknowledgement, mark, commit."""
    producer = AIOKafkaProducer(
        bootstrap_servers=os.environ["BENCH_SERVERS"], enable_idempotence=True, acks="all", linger_ms=0
    )
    await producer.start()
    connection = await asyncpg.connect(os.environ["MILLSTREAM_POSTGRES_URL"])
    topic = os.environ["BENCH_OUT"]
    clock.start()
    while True:
        async with connection.transaction():
            row = await connection.fetchrow(CLAIM)
            if row is None:
                break
            headers = [(name, value.encode()) for name, value in json.loads(row["headers"]).items()]
            await producer.send_and_wait(topic, row["payload"], row["key"].encode(), headers=headers)
            await connection.execute(MARK, row["event_id"])
        clock.add(1)
    await producer.stop()
    await connection.close()


async def relay(clock: Clock, kind: type[PollingRelay] | type[ReplicationRelay]) -> None:
    """The relay as `millstream outbox relay` runs it."""
    made = kind(Settings(), os.environ["MILLSTREAM_POSTGRES_URL"])
    clock.start()
    running = asyncio.create_task(made.run())
    marked = await asyncpg.connect(os.environ["MILLSTREAM_POSTGRES_URL"])
    while made.published < clock.total:  # the last batch is not marked yet then  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    while await marked.fetchval("SELECT EXISTS (SELECT FROM catalog.outbox_events WHERE published_at IS NULL)"):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    clock.add(made.published)
    made.stop()
    await running
    await marked.close()


CONTENDERS: dict[str, Callable[[Clock], Awaitable[None]]] = {
    "loop": loop,
    "polling": lambda clock: relay(clock, PollingRelay),
    "replication": lambda clock: relay(clock, ReplicationRelay),
}

if __name__ == "__main__":
    asyncio.run(CONTENDERS[sys.argv[1]](Clock.from_env()))  # type: ignore[arg-type]
