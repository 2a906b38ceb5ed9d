"""`millstream demo-changefeed`: both lines of work on Postgres, with what may go wrong on the way shown handled."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen
from uuid import UUID

import click

from millstream.errors import MillstreamError
from streams.cli.given import make_writable

if TYPE_CHECKING:
    from rich.console import Console

    from millstream.postgres import Connection
    from millstream.settings import Settings
    from schemas.events import Event
    from streams.cli.private import Private
    from streams.cli.worker import WorkerProcess

WRITERS = 4
"""Sessions of the service that writes videos."""
UPDATES = 3
"""Of each video."""
IDLE_SECONDS = 180.0
"""Without any change for so long the demo gives up."""
_OPTIONS = {
    "STREAMS": "streams.outbox,streams.projection,streams.videos,streams.products",
    "OUTBOX_TOPICS": "video=catalog.video.events",
    "OUTBOX_VIA": "polling",
    "OUTBOX_POLL_MAX": "1",
    "PROJECTION_CLICKHOUSE": "false",
    "WEB_BIND": "127.0.0.1",
}
"""Of the worker, whatever the user has set for others."""
_COUNTS = """
SELECT (SELECT count(*) FROM catalog.outbox_events) AS written,
       (SELECT count(*) FROM catalog.outbox_events WHERE published_at IS NOT NULL) AS published,
       (SELECT coalesce(sum(events_applied), 0)::bigint FROM catalog.video_projection) AS projected,
       (SELECT count(*) FROM catalog.projection_errors) AS recorded
"""
_FINGERPRINT = "SELECT md5(string_agg(p::text, '' ORDER BY video_id)) FROM catalog.video_projection p"
_STAGE = """
INSERT INTO shop.products_staging
SELECT 'B' || i % 20, 's' || i / 20, 'product ' || i, (i % 1000) + 0.99, 'red||blue', '["b", "a"]',
       '{"size": "38||37"}', 'as good as new', 'https://cdn.example/' || i, i % 3 = 0,
       now() - interval '1 hour' + i * interval '1 millisecond'
  FROM generate_series(1, $1::int) i
"""
_REPRICE = """
UPDATE shop.products_staging SET price = price + 1, src_updated_at = now() - interval '2 seconds'
 WHERE substr(style_no, 2)::int % 10 = 0
"""
_TOUCH = """
UPDATE shop.products_staging SET tags_json = '["a", "b", "a"]', src_updated_at = now() - interval '1 second'
 WHERE substr(style_no, 2)::int % 10 = 1
"""


class DemoFailedError(MillstreamError):
    """What was written did not arrive, or not as it should. The text says what and where to look."""


@click.command("demo-changefeed")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=Path("demo-out/changefeed"),
    show_default=True,
    help="Where the demo's own Postgres keeps its data.",
)
@click.option("--videos", type=click.IntRange(1, 1_000_000), default=500, show_default=True, help="Videos to write.")
@click.option(
    "--products", type=click.IntRange(100, 10_000_000), default=10_000, show_default=True, help="Rows to stage."
)
def demo_changefeed(directory: Path, videos: int, products: int) -> None:
    """Outbox to projection, and staging table to change feed, through Kafka on an embedded Postgres.

    A repeated event, a late one and poison are thrown in, and shown handled. A Postgres that you have configured is
    not touched.

    \b
    millstream demo-changefeed --videos 2000
    """
    from rich.console import Console

    make_writable(directory.absolute())
    asyncio.run(_run(directory.absolute(), videos, products, Console()))


async def _run(directory: Path, videos: int, products: int, out: Console) -> None:
    from millstream.child import free_port
    from millstream.postgres import EmbeddedPostgres, connect
    from millstream.settings import override_settings
    from schemas.postgres import migrate
    from streams.cli.private import private
    from streams.cli.showing import next_steps

    async with EmbeddedPostgres(directory / "postgres") as server:
        async with connect(server.url) as connection:
            await connection.execute("DROP DATABASE IF EXISTS demo WITH (FORCE)")
            await connection.execute("CREATE DATABASE demo")
        url = server.url_of("demo")
        options = _OPTIONS | {"POSTGRES_URL": url, "WEB_PORT": str(free_port())}
        with override_settings(postgres_url=url):
            async with connect(url) as connection, private(f"demo-{secrets.token_hex(4)}.", options) as one:
                await migrate(connection)
                async with one.worker(web=True) as worker:
                    try:
                        feed = _Feed(one, worker, connection, url, out, int(options["WEB_PORT"]))
                        await feed.outbox(videos)
                        await feed.trouble()
                        await feed.reading()
                    except MillstreamError as exc:
                        raise DemoFailedError(f"{exc}\nThe log of the worker: {one.log_path}") from exc
                    await _products(one.settings, connection, products, out)
                await asyncio.to_thread(one.clean_up)
                one.log_path.unlink(missing_ok=True)
    next_steps(
        out,
        (
            "export MILLSTREAM_POSTGRES_URL=postgresql://me@db:5432/shop    # yours",
            "millstream migrate",
            "make kafka     # leave a broker running, then each in a terminal of its own:",
            "millstream outbox relay",
            "MILLSTREAM_STREAMS=streams.projection,streams.videos MILLSTREAM_APP_ID=videos faust -A streams worker",
            "millstream outbox stats; millstream dlq list catalog.video.events; millstream etl products --dry-run",
            "docs/changefeeds.md has the rules, the drills and what to do when something is wrong",
        ),
    )


class _Feed:
    """Videos: business rows and events in one transaction, to the topic, to the projection, to a reader."""

    def __init__(
        self, one: Private, worker: WorkerProcess, connection: Connection, url: str, out: Console, port: int
    ) -> None:
        from schemas.events import TOPIC

        self._one, self._settings, self._worker = one, one.settings, worker
        self._db, self._url, self._out, self._port = connection, url, out, port
        self.topic = one.settings.namespace + TOPIC

    async def outbox(self, videos: int) -> None:
        """Write them, and watch their events come through."""
        self._out.print(
            f"[bold]1. Outbox[/]: {videos:,} videos are created, changed, some deleted; row and event in one "
            f"transaction -> relay -> Kafka topic {self.topic} -> projection"
        )
        began = time.monotonic()
        total = videos * (1 + UPDATES) + videos // 10
        writing = asyncio.gather(*(self._write(range(n, videos, WRITERS)) for n in range(WRITERS)))
        try:
            await self._through(total)
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        self._out.print(
            f"{total:,} events in {time.monotonic() - began:.1f} s, from the first commit to the last row\n"
        )

    async def _write(self, numbers: Iterable[int]) -> None:
        from millstream.postgres import connect
        from sources.outbox import Videos

        rng = random.Random(1)
        async with connect(self._url) as connection:
            service = Videos(connection)
            for n in numbers:
                video = UUID(int=n + 1)
                await service.create(video, UUID(int=n % 7), f"video {n}", duration_micros=n * 1_000_000)
                for k in range(UPDATES):
                    await service.update(video, {"title": f"video {n}, cut {k}", "tags": [f"t{rng.randrange(99)}"]})
                if n % 10 == 9:
                    await service.delete(video, reason="asked for")

    async def _through(self, total: int) -> None:
        """Until so many events are written, published and in the projection."""
        from streams.cli.showing import bars

        with bars() as shown:
            tasks = {name: shown.add_task(f"{name:<10}", total=total) for name in ("written", "published", "projected")}
            last, changed = None, time.monotonic()
            while True:
                counts = await self._counts()
                for name, task in tasks.items():
                    shown.update(task, completed=counts[name])
                if all(counts[name] == total for name in tasks):
                    return
                self._worker.check()
                if counts != last:
                    last, changed = counts, time.monotonic()
                elif time.monotonic() - changed > IDLE_SECONDS:
                    raise DemoFailedError(f"nothing moved for {IDLE_SECONDS:.0f} s, at {counts} of {total}")
                await asyncio.sleep(0.1)

    async def _counts(self) -> dict[str, int]:
        row = await self._db.fetchrow(_COUNTS)
        assert row is not None
        return dict(row)

    async def trouble(self) -> None:
        """All events once more, one of a lower version late, one of an unknown schema, and poison."""
        from schemas.events import CREATED, UPDATED
        from sources.outbox import OutboxStore
        from streams.cli.showing import table
        from streams.letters import Letters

        before, was = await self._db.fetchval(_FINGERPRINT), await self._counts()
        again, _ = await OutboxStore(self._settings).requeue(self._db, since=datetime(1970, 1, 1, tzinfo=UTC))
        await self._until_read(lambda counts: counts["published"] == again)
        same = await self._db.fetchval(_FINGERPRINT) == before
        late = UUID(int=1 << 40)
        events = [
            _event(CREATED, late, 1, title="first", status="processing"),
            _event(UPDATED, late, 3, title="third"),
            _event(UPDATED, late, 2, title="second", description="of version 2"),
        ]
        await asyncio.to_thread(self._send, events)
        await self._until_read()
        row = await self._db.fetchrow("SELECT * FROM catalog.video_projection WHERE video_id = $1", late)
        found = await self._counts()
        letters = await asyncio.to_thread(lambda: Letters(self._settings, self.topic).all())
        merged = row is not None and (row["version"], row["title"], row["description"]) == (3, "third", "of version 2")
        is_same = "the same" if same else "DIFFERENT"
        rows = [
            ("every event once more", again, f"known by its id; the projection is {is_same}"),
            ("versions 1 and 3, then 2", 3,
             f"title {row['title']!r} of version {row['version']} stays, description {row['description']!r} is taken"
             if row is not None else "LOST"),
            ("a schema_version v2", 1, f"{found['recorded']} in catalog.projection_errors, with its bytes"),
            ("poison: no event at all", 2, f"{len(letters)} in {self.topic}.dlq, with the reason; the stream goes on"),
        ]  # fmt: skip
        self._out.print(table("What may go wrong, thrown in", ("sent", "records", "what came of it"), rows))
        for letter in letters[:1]:
            self._out.print(f"  {letter.id}: {letter.note('reason')}\n", markup=False, highlight=False)
        if not (same and merged and len(letters) == 2 and found["recorded"] == 1 and again == was["written"]):
            raise DemoFailedError("this is not as it should be: a bug, please report it")

    def _send(self, events: list[Event]) -> None:
        """Straight to the topic, as a relay without order would, and as a stranger might. Blocking."""
        import confluent_kafka as ck

        from millstream.cluster import client_config
        from schemas.events import encode_protobuf, headers_of

        producer = ck.Producer(client_config(self._settings) | {"partitioner": "murmur2_random"})
        for event in events:
            headers = {name: text.encode() for name, text in headers_of(event).items()}
            producer.produce(self.topic, encode_protobuf(event), event.aggregate_id, headers=dict(headers))
        producer.produce(
            self.topic, encode_protobuf(event), event.aggregate_id, headers=headers | {"schema_version": b"v2"}
        )
        for value in (b"\xff\xfe garbage", b"{}"):
            producer.produce(self.topic, value, event.aggregate_id, headers=dict(headers))
        if producer.flush(IDLE_SECONDS):
            raise DemoFailedError(f"Kafka did not take what was sent to {self.topic}")

    async def _until_read(self, published: Any = lambda _counts: True) -> None:
        """Until the relay and the projection have nothing left to do."""
        deadline = time.monotonic() + IDLE_SECONDS
        while not (published(await self._counts()) and await asyncio.to_thread(self._read)):
            self._worker.check()
            if time.monotonic() > deadline:
                raise DemoFailedError(f"{self.topic} is not read to its end after {IDLE_SECONDS:.0f} s")
            await asyncio.sleep(0.1)

    def _read(self) -> bool:
        """Whether the group has committed the end of each partition. Blocking."""
        import confluent_kafka as ck

        from millstream.cluster import client_config

        consumer = ck.Consumer(client_config(self._settings) | {"group.id": self._settings.group_id})
        try:
            known = consumer.list_topics(self.topic, 30).topics[self.topic].partitions
            at = consumer.committed([ck.TopicPartition(self.topic, p) for p in known], 30)
            return all(max(0, tp.offset) == consumer.get_watermark_offsets(tp, 30)[1] for tp in at)
        finally:
            consumer.close()

    async def reading(self) -> None:
        """A reader with a consistency token, over HTTP."""
        from streams.cli.showing import table

        alive, deleted = (
            UUID(int=1),
            await self._db.fetchval("SELECT min(video_id::text)::uuid FROM catalog.video_projection WHERE NOT visible"),
        )
        asked = [(alive, 1), (alive, 1 + UPDATES), (alive, 2 + UPDATES), (UUID(int=1 << 80), 1)]
        if deleted is not None:
            asked.insert(3, (deleted, 1))
        rows = []
        for video, version in asked:
            status, state = await asyncio.to_thread(self._ask, f"/videos/{video}?min_version={version}&timeout_ms=200")
            rows.append((f"GET /videos/{video}?min_version={version}", status, state))
        self._out.print(table("A reader that was promised a version", ("asked", "status", "state"), rows))
        states = [state for _, _, state in rows]
        if states != [s for s in ("ahead", "equal", "behind", "deleted", "never_existed") if deleted or s != "deleted"]:
            raise DemoFailedError("a reader was told something else than it should be: a bug, please report it")

    def _ask(self, path: str) -> tuple[int, str]:
        import json

        try:
            with urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=IDLE_SECONDS) as answer:
                return answer.status, json.loads(answer.read())["state"]
        except HTTPError as answer:
            return answer.code, json.loads(answer.read()).get("state", answer.reason)


async def _products(settings: Settings, connection: Connection, count: int, out: Console) -> None:
    """Staged rows to versioned products, and their changes to a topic."""
    from schemas.products import CHANGES_TOPIC
    from sources.staging.changes import publish_changes
    from streams.cli.products import ProductsRun
    from streams.cli.showing import table

    out.print(
        f"\n[bold]2. Product ETL[/]: {count:,} staged rows -> Kafka -> normalised, versioned products and their change "
        f"log -> change feed {settings.namespace}{CHANGES_TOPIC}"
    )
    run = ProductsRun(settings, "shop.products_staging", 1000, None, True, True, False)
    steps = {
        "all rows, new": (_STAGE, [count]),
        "every tenth with another price": (_REPRICE, []),
        "every tenth touched, its content the same": (_TOUCH, []),
    }
    rows = []
    for name, (sql, arguments) in steps.items():
        changed = int((await connection.execute(sql, *arguments)).rpartition(" ")[2])
        began, lines = time.monotonic(), dict(s.split(": ", 1) for s in await run.run(feed_only=True, follow=False))
        published = (await publish_changes(settings, 500)).published
        created, updated = int(lines["created"]), int(lines["updated"])
        rows.append((name, changed, created, updated, published, f"{time.monotonic() - began:.1f} s"))
    out.print(table("Three runs", ("staged", "rows", "created", "updated", "in the change feed", "took"), rows))
    out.print(f"watermark: {lines['watermark']}\n", markup=False, highlight=False)
    expected = [(count, 0), (0, rows[1][1]), (0, 0)]
    if [row[2:4] for row in rows] != expected or [row[4] for row in rows] != [sum(pair) for pair in expected]:
        raise DemoFailedError("products or changes are missing or too many: a bug, please report it")


def _event(kind: str, video: UUID, version: int, **payload: Any) -> Event:
    from uuid import uuid4

    from schemas.events import Event

    return Event(
        event_id=str(uuid4()),
        event_type=kind,
        aggregate_id=str(video),
        version=version,
        occurred_at=datetime.now(UTC),
        payload=payload,
    )
