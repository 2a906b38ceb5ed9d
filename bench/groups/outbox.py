"""From the outbox of a real Postgres to Kafka, against an event-by-event loop of asyncpg and aiokafka."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from bench import data
from bench.outbox import FILL
from bench.runner import Contender, ContenderError
from bench.session import Bench
from millstream.postgres import EmbeddedPostgres, connect
from millstream.settings import Settings
from schemas.postgres import migrate
from sources.outbox import ReplicationRelay

SECONDS = (2, 45)


def run(bench: Bench) -> None:
    """Each turn has a database of its own, filled before the clock starts."""
    n = min(100_000, bench.records // 10)
    few = max(1, n // 20)
    bench.title("outbox", "Outbox in Postgres -> Kafka, events of 300 B with 8 headers, 1,000 aggregates")
    with EmbeddedPostgres(bench.directory / "postgres", shared_buffers="256MB") as server:
        where = server.url_of("{app}")
        env = {
            "MILLSTREAM_POSTGRES_URL": where, "MILLSTREAM_OUTBOX_TOPICS": "video={app}-out", "BENCH_OUT": "{app}-out",
            "MILLSTREAM_OUTBOX_SLOT": "bench", "MILLSTREAM_OUTBOX_PUBLICATION": "bench",
        }  # fmt: skip

        def contender(key: str, name: str, records: int) -> Contender:
            return Contender(key, name, [sys.executable, "-m", "bench.outbox", key], "", records, env)

        def prepare(contender: Contender, _where: Path, app: str) -> None:
            data.create(bench.servers, f"{app}-out")
            asyncio.run(_fill(server, app, contender))

        def check(contender: Contender, _where: Path, app: str) -> None:
            found = [dict(m.headers())["event_id"] for m in data.committed(bench.servers, f"{app}-out")]
            if len(found) != contender.records or len(set(found)) != contender.records:
                raise ContenderError(
                    f"{contender.name}: {len(found)} records, {len(set(found))} events of {contender.records}"
                )
            data.drop(bench.servers, f"{app}-out")
            asyncio.run(_drop(server, app))

        contenders = [
            contender("polling", "millstream, polling relay", n),
            contender("replication", "millstream, relay via replication", n),
            contender("loop", "asyncpg + aiokafka, event by event", few),
        ]
        bench.take_turns("outbox", contenders, check, prepare=prepare)


async def _fill(server: EmbeddedPostgres, app: str, contender: Contender) -> None:
    async with connect(server.url) as connection:
        await connection.execute(f'CREATE DATABASE "{app}"')
    url = server.url_of(app)
    async with connect(url) as connection:
        await migrate(connection)
        if contender.key == "replication":
            settings = Settings(outbox_slot="bench", outbox_publication="bench")
            await ReplicationRelay(settings, url).create()
        await connection.execute(FILL, contender.records)
        await connection.execute("ANALYZE catalog.outbox_events")


async def _drop(server: EmbeddedPostgres, app: str) -> None:
    async with connect(server.url_of(app)) as connection:
        while await connection.fetchval("SELECT bool_or(active) FROM pg_replication_slots"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # until the server has noticed that the relay is gone
        await connection.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    async with connect(server.url) as connection:
        await connection.execute(f'DROP DATABASE "{app}" WITH (FORCE)')
