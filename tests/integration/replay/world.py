"""A topic of events, a database, and the projection of the one in the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from click.testing import Result

from millstream.postgres import Connection, connect
from millstream.settings import Settings
from schemas.events import Event
from streams.replay.plan import Plan, TopicPlan
from streams.replay.run import Replay
from tests.acceptance.cli import Cli
from tests.support.kafka import produce
from tests.support.projection import record
from tests.unit.events.events import history

PARTITIONS = 3
DAMAGE = """
DELETE FROM catalog.video_projection WHERE video_id = '00000000-0000-0000-0000-000000000001';
UPDATE catalog.video_projection SET field_versions = field_versions || '{"title": [9, "x", "wrong"]}'
 WHERE video_id = '00000000-0000-0000-0000-000000000002';
INSERT INTO catalog.video_projection (video_id, version, created_version, events_applied, field_versions)
VALUES ('00000000-0000-0000-0000-00000000ffff', 1, 1, 1, '{"title": [1, "x", "planted"]}')
"""
"""One row is gone, one holds what no event says, one is of a video that never was."""


class World:
    """One test's."""

    def __init__(self, kafka: str, url: str, topic: str, home: Path) -> None:
        self.kafka, self.url, self.topic, self.home = kafka, url, topic, home
        self.settings = Settings(bootstrap_servers=kafka, postgres_url=url, outbox_topics={"video": topic})
        self.sent: list[Event] = []

    def produce(self, events: Iterable[Event], **options: Any) -> None:
        """Events into the topic, protobuf and JSON by turns."""
        found = list(events)
        self.sent += found
        records = [record(e, 0, as_json=n % 2 == 1) for n, e in enumerate(found)]
        produce(
            self.kafka,
            self.topic,
            [{"key": r.key, "value": r.value, "headers": list(r.headers)} | options for r in records],
        )

    async def send(self, events: Iterable[Event], **options: Any) -> None:
        """The same, beside the event loop."""
        await asyncio.to_thread(self.produce, events, **options)

    def replay(self, plan: Plan | None = None, **options: Any) -> Replay:
        """A replay of all of the topic."""
        return Replay(self.settings, plan or TopicPlan(), **options)

    def cli(self, **settings: str) -> Cli:
        """The program, for this topic and database."""
        own = {"POSTGRES_URL": self.url, "OUTBOX_TOPICS": f"video={self.topic}",
               "OUTBOX_TOPIC_PARTITIONS": str(PARTITIONS), "APP_ID": self.topic}  # fmt: skip
        return Cli(self.kafka, self.home, **(own | settings))

    def here(self, *arguments: str, **settings: str) -> Result:
        """The program in this process."""
        return self.cli(**settings).here(*arguments)

    def ok(self, *arguments: str) -> str:
        """What it prints, and it has to succeed."""
        done = self.here(*arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    async def sql(self, text: str) -> list[tuple[Any, ...]]:
        """On a connection of its own."""
        async with connect(self.url) as connection:
            return [tuple(row) for row in await connection.fetch(text)]

    async def run(self, text: str) -> None:
        """Several statements."""
        async with connect(self.url) as connection:
            await connection.execute(text)


def histories(videos: int, length: int = 6, seed: int = 1) -> list[Event]:
    """Events of some videos, mixed."""
    rng = random.Random(seed)
    found = [e for video in range(1, videos + 1) for e in history(rng, video, length)]
    rng.shuffle(found)
    return found


async def content(connection: Connection) -> dict[str, Any]:
    """Everything that a replay must leave alone where it has nothing to do."""
    tables = ("catalog.video_projection", "catalog.inbox_events", "catalog.projection_errors", "millstream.positions")
    return {t: sorted(map(tuple, await connection.fetch(f"SELECT t::text FROM {t} t"))) for t in tables}
