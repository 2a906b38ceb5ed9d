"""A replay from start to end: read, apply at a limited rate, remember how far; compare and swap what was built anew."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field

from millstream.errors import ConfigError
from millstream.failpoints import declare, failpoint
from millstream.postgres import Connection, connect, naming, postgres_url
from millstream.settings import Settings
from schemas.chunk import Chunk
from schemas.events import AGGREGATE_TYPE, TOPIC
from schemas.events.codec import EventCodec
from schemas.postgres import require_migrated
from sinks.postgres import shadow
from streams.replay.outbox import OutboxSource
from streams.replay.plan import OutboxPlan, Plan
from streams.replay.slices import ROWS
from streams.replay.topic import TopicSource
from streams.replay.writing import LIVE, DryWriter, SinkWriter, Writer

APPLIED = declare("replay.applied", "a slice is in, and how far that is; more follow")

_LOCK = "SELECT pg_try_advisory_lock(hashtextextended('millstream replay', 0))"

Show = Callable[[int, int, int], None]
"""Told how it goes: places in all, places done, records."""


@dataclass
class Outcome:
    """What a replay did, or would do."""

    counts: Counter[str] = field(default_factory=Counter)
    """`records` and `undecodable` ones; `applied`, `duplicates`, `conflicts`, `errors`, `created`, `changed` as
    VideoProjection counts them."""
    notes: list[str] = field(default_factory=list)
    diff: shadow.Diff | None = None
    """Of a rebuild, or of a dry run."""
    swapped: bool = False
    given_up: int = 0
    """Events of the live projection that the swapped one lacks (--force)."""


@dataclass(frozen=True)
class Replay:
    """What is asked for. Raises ConfigError, BrokerError, PostgresError, SinkError, SwapRefusedError."""

    settings: Settings
    plan: Plan
    rate: int | None = None
    """Events per second; None: as fast as it goes."""
    resume: bool = True
    show: Show = lambda _total, _done, _records: None

    @property
    def url(self) -> str:
        """Of Postgres."""
        return postgres_url(self.settings)

    async def live(self) -> Outcome:
        """Into the live projection. Workers may run beside it."""
        async with self._begun() as (connection, source), AsyncExitStack() as stack:
            writer = SinkWriter(self.url, LIVE, str(self.plan), self.settings.sink_retry_timeout)
            await writer.open()
            stack.push_async_callback(writer.close)
            if not self.resume:
                await writer.forget(connection)
            held = await writer.held(connection)
            outcome = Outcome()
            await self._pass(source, writer, await source.prepare(held), outcome)
            if held:
                outcome.notes.append("went on where an earlier replay was ended (--no-resume begins anew)")
            await writer.forget(connection)
            return outcome

    async def rebuild(self, *, swap: bool = False, force: bool = False) -> Outcome:
        """Into a shadow, which is compared with the live projection, and with `swap` put into its place."""
        async with self._begun() as (connection, source), AsyncExitStack() as stack:
            outcome = Outcome()
            await self._make_shadow(connection, outcome)
            writer = SinkWriter(self.url, shadow.SINKS, str(self.plan), self.settings.sink_retry_timeout)
            await writer.open()
            stack.push_async_callback(writer.close)

            async def read() -> None:
                await self._pass(source, writer, await source.prepare(await writer.held(connection)), outcome)

            await read()
            if isinstance(source, OutboxSource):
                source.only_missed()
                await read()
            outcome.diff = await shadow.diff(connection)  # not under the lock of the swap: it takes its time
            if swap:

                async def catch_up(_unread: list[shadow.Unread]) -> None:
                    await read()

                outcome.given_up = await shadow.swap(connection, catch_up, force=force)
                outcome.swapped = True
            return outcome

    async def dry(self, *, rebuild: bool) -> Outcome:
        """What `live` or `rebuild` would do; only temporary tables are written."""
        async with self._begun() as (_, source):
            with naming("replay", self.url):
                async with connect(self.url, "millstream-replay-dry") as connection:
                    writer, outcome = DryWriter(connection, rebuild=rebuild), Outcome()
                    await writer.open()
                    await self._pass(source, writer, await source.prepare({}), outcome)
                    outcome.diff = await writer.diff()
                    return outcome

    @asynccontextmanager
    async def _begun(self) -> AsyncIterator[tuple[Connection, TopicSource | OutboxSource]]:
        """A connection that keeps other replays away, and the source."""
        with naming("replay", self.url):
            async with connect(self.url, "millstream-replay") as connection:
                await require_migrated(connection)
                await own(connection)
                s, plan = self.settings, self.plan
                if isinstance(plan, OutboxPlan):
                    yield connection, OutboxSource(connection, AGGREGATE_TYPE, plan)
                else:
                    topic = s.namespace + s.outbox_topics.get(AGGREGATE_TYPE, TOPIC)
                    yield connection, TopicSource(s, topic, plan)

    async def _make_shadow(self, connection: Connection, outcome: Outcome) -> None:
        described = f"millstream replay --rebuild: {self.plan}"
        standing = await shadow.found(connection)
        if standing is not None and not self.resume:
            await shadow.drop(connection)
            standing = None
        if standing is None:
            await shadow.create(connection, described)
        elif standing != described:
            raise ConfigError(
                f"there is a rebuilt projection of another source ({standing}; asked for: {self.plan}): give the same "
                "source to go on with it, --no-resume to begin anew, or --drop"
            )
        else:
            outcome.notes.append("went on with the rebuilt projection that was there (--no-resume begins anew)")

    async def _pass(self, source: TopicSource | OutboxSource, writer: Writer, total: int, outcome: Outcome) -> None:
        """Everything there is now."""
        codec, pace, done = EventCodec(), Pace(self.rate), 0
        outcome.notes = list(dict.fromkeys([*outcome.notes, *source.notes]))
        self.show(total, 0, outcome.counts["records"])
        async with aclosing(source.slices(pace.rows)) as slices:
            async for found in slices:
                decoded = await asyncio.to_thread(codec.decode, found.records)
                outcome.counts.update(await writer.write(Chunk(found.at, decoded.table), found.cursor))
                outcome.counts.update(records=len(found.records), undecodable=len(decoded.rejected))
                failpoint(APPLIED)
                done += found.at.last + 1 - found.at.first
                self.show(total, done, outcome.counts["records"])
                await pace.spent(len(found.records))


class Pace:
    """Keeps to a rate: after so many records so much time has passed."""

    def __init__(self, rate: int | None) -> None:
        self._rate, self._records, self._began = rate, 0, time.monotonic()
        self.rows = ROWS if rate is None else min(ROWS, rate)
        """Of a slice, so that the rate holds from second to second."""

    async def spent(self, records: int) -> None:
        """So many more; wait if that was early."""
        self._records += records
        if self._rate is not None:
            await asyncio.sleep(max(0.0, self._began + self._records / self._rate - time.monotonic()))


async def drop(settings: Settings) -> str | None:
    """Remove the rebuilt projection; what it was of, None if there was none."""
    url = postgres_url(settings)
    with naming("drop the rebuilt projection", url):
        async with connect(url, "millstream-replay") as connection:
            await require_migrated(connection)
            await own(connection)
            standing = await shadow.found(connection)
            await shadow.drop(connection)
            return standing


async def own(connection: Connection) -> None:
    """Keep other replays away for as long as the connection lasts. Raises ConfigError if there is one."""
    if not await connection.fetchval(_LOCK):
        raise ConfigError("another replay (or repair) is running in this database: wait until it has ended")
