"""From Kafka into the projection on a real Postgres, against an event-by-event loop of aiokafka and asyncpg."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import confluent_kafka as ck

from bench import data
from bench.projection import PLAIN, records
from bench.runner import Contender, ContenderError
from bench.session import OFF, Bench, worker
from millstream.postgres import EmbeddedPostgres, connect
from schemas.postgres import migrate

SECONDS = (10, 60)
EXACT = "SELECT count(*), count(*) FILTER (WHERE visible), sum(events_applied)::bigint FROM catalog.video_projection"
PLAINLY = "SELECT count(*), sum(version)::bigint FROM plain_projection"


def run(bench: Bench) -> None:
    """The topics are filled once; each turn has a database of its own."""
    n = min(100_000, bench.records // 10)
    few = max(1, n // 20)
    bench.title("projection", "Events of videos (protobuf, 250 B, 8 headers) -> inbox and projection in Postgres")
    for topic, count in {"events": n, "events-few": few}.items():
        _fill(bench.servers, topic, count)
    with EmbeddedPostgres(bench.directory / "postgres", shared_buffers="256MB") as server:
        env = {
            "MILLSTREAM_POSTGRES_URL": server.url_of("{app}"), "MILLSTREAM_OUTBOX_TOPICS": "video=events",
            "MILLSTREAM_STREAMS": "streams.projection", "BENCH_GROUP": "{app}",
        }  # fmt: skip

        def prepare(_contender: Contender, _where: Path, app: str) -> None:
            asyncio.run(_database(server, app))

        def check(contender: Contender, _where: Path, app: str) -> None:
            asyncio.run(_check(server, app, contender))

        real = worker("projection")
        contenders = [
            Contender("on", "millstream, exactly once", real, "events", n, env, 0),
            Contender("off", "millstream, at least once", real, "events", n, env | OFF, 0),
            Contender(
                "loop", "aiokafka + asyncpg, event by event", [sys.executable, "-m", "bench.projection"], "events-few",
                few, env, 0,
            ),
        ]  # fmt: skip
        bench.take_turns("projection", contenders, check, prepare=prepare)


def _fill(servers: str, topic: str, count: int) -> None:
    data.create(servers, topic)
    producer = ck.Producer({"bootstrap.servers": servers, "linger.ms": 50, "partitioner": "murmur2_random"})
    for key, value, headers in records(count):
        while True:
            try:
                producer.produce(topic, value, key, headers=headers)
            except BufferError:
                producer.poll(0.1)
            else:
                break
    if producer.flush(120):
        raise RuntimeError(f"topic {topic} could not be filled")


async def _database(server: EmbeddedPostgres, app: str) -> None:
    async with connect(server.url) as connection:
        await connection.execute(f'CREATE DATABASE "{app}"')
    async with connect(server.url_of(app)) as connection:
        await migrate(connection)
        await connection.execute(PLAIN)


async def _check(server: EmbeddedPostgres, app: str, contender: Contender) -> None:
    plain = contender.key == "loop"
    async with connect(server.url_of(app)) as connection:
        taken = await connection.fetchval("SELECT count(*) FROM catalog.inbox_events")
        row = await connection.fetchrow(PLAINLY if plain else EXACT)
        if taken != contender.records or row is None or (not plain and row[2] != contender.records):
            raise ContenderError(f"{contender.name}: {taken} events in the inbox, {row}, of {contender.records}")
    async with connect(server.url) as connection:
        await connection.execute(f'DROP DATABASE "{app}" WITH (FORCE)')
