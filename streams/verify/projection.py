"""The projection of videos against the business table, and against what the events of the topic add up to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import NamedTuple

from millstream.postgres import Connection, load
from millstream.settings import Settings
from schemas.chunk import Chunk
from schemas.events import AGGREGATE_TYPE, TOPIC
from schemas.events.codec import EventCodec
from sinks.postgres.shadow import TEMPORARY
from streams.replay.plan import TopicPlan
from streams.replay.slices import ROWS
from streams.replay.topic import TopicSource
from streams.replay.writing import DryWriter
from streams.verify.compare import Verdict, compare

SQL = load("streams.verify", "projection.sql")
Show = Callable[[int, int, int], None]


class _Placed(NamedTuple):
    """Keys by events that only one of topic and inbox has."""

    lost: set[str]
    """Workers went past one of them."""
    waiting: set[str]
    """Workers have still to come to one, or came to it after we had read."""
    unread: set[str]
    """We could not read one."""


@dataclass
class Projection:
    """One look; `connection` keeps the topic's events in temporary tables. Raises ConfigError, BrokerError."""

    settings: Settings
    connection: Connection
    ranges: int
    grace: float
    """Seconds that an event may take from being published to being applied."""
    show: Show
    source: TopicSource | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    _began: float = 0.0
    """When the topic was read."""

    async def read_topic(self) -> None:
        """Fold the topic, as it is now, into tables of this session."""
        self.source, self._began = self.topic(), time.monotonic()
        writer, codec = DryWriter(self.connection, rebuild=True), EventCodec()
        await writer.open()
        total, done, records = await self.source.prepare({}), 0, 0
        async with aclosing(self.source.slices(ROWS)) as slices:
            async for found in slices:
                decoded = await asyncio.to_thread(codec.decode, found.records)
                await writer.write(Chunk(found.at, decoded.table), "")
                done, records = done + found.at.last + 1 - found.at.first, records + len(found.records)
                self.show(total, done, records)

    def topic(self) -> TopicSource:
        """All of the topic, as it is when it is read."""
        s = self.settings
        return TopicSource(s, s.namespace + s.outbox_topics.get(AGGREGATE_TYPE, TOPIC), TopicPlan())

    async def look(self) -> list[Verdict]:
        """Compare, all sides as they are at one moment."""
        async with self.connection.transaction(isolation="repeatable_read"):
            self.verdicts = [await self._by_source()]
            if self.source is not None:
                self.verdicts.append(await self._by_topic(self.source))
        return self.verdicts

    async def by_source(self) -> Verdict:
        """Against `catalog.videos` alone."""
        async with self.connection.transaction(isolation="repeatable_read"):
            return await self._by_source()

    async def _by_source(self) -> Verdict:
        verdict = await compare(self.connection, "source", SQL["source"], SQL["shown"], self.ranges)
        if verdict.keys:
            # With the topic at hand it is known how far the workers are, whatever the clock says.
            grace = self.grace if self.source is None else time.monotonic() - self._began
            rows = await self.connection.fetch(SQL["untaken"], verdict.keys, grace, AGGREGATE_TYPE)
            waiting = {row["key"] for row in rows if row["waiting"] and not (row["lost"] and self.source is None)}
            if self.source is not None:
                placed = await self._placed(self.source, verdict.keys)
                waiting = (waiting | placed.waiting) - placed.lost
            verdict.waiting = len(waiting)
            verdict.leave_out(waiting)
        return verdict

    async def _by_topic(self, source: TopicSource) -> Verdict:
        read, held = (SQL["events"].replace("{schema}", schema) for schema in (TEMPORARY, "catalog"))
        verdict = await compare(self.connection, "topic", read, held, self.ranges)
        verdict.notes += source.notes
        if verdict.keys:
            lost, waiting, unread = await self._placed(source, verdict.keys)
            waiting, unread = waiting - lost, unread - waiting - lost
            verdict.waiting = len(waiting)
            verdict.leave_out(waiting | unread)
            if unread:
                verdict.notes.append(
                    f"not compared, their first events are no longer in the topic: {len(unread)}: {min(unread)}"
                )
        return verdict

    async def _placed(self, source: TopicSource, keys: list[str]) -> _Placed:
        ends = {partition: found.end for partition, found in source.ranges.items()}
        rows = await self.connection.fetch(SQL["placed"], keys, source.topic, list(ends), list(ends.values()))
        return _Placed(
            {r["key"] for r in rows if r["lost"]},
            {r["key"] for r in rows if r["waiting"] or r["newer"]},
            {r["key"] for r in rows if r["unread"]},
        )
