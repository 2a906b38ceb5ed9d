"""The table `catalog.outbox_events` as relays and operators see it. Errors are asyncpg's: callers say what they did."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from millstream.postgres import Connection, load
from millstream.settings import Settings

if TYPE_CHECKING:
    from asyncpg import Record

SQL = load("sources.outbox", "outbox.sql")
CHANNEL = "catalog.outbox_events"
"""What inserts notify at commit, without a payload, and `requeue`, with one."""
CLAIM_BYTES = 32 << 20
"""Payload of one claim, about: what a relay holds in memory, and what must get through within the publish timeout."""
PRUNE_ROWS = 10_000
"""Rows of one delete: it must not hold locks for long."""


class Failure(NamedTuple):
    """Why an event was not published."""

    error: str
    counts: bool = False
    """Kafka refused this very record: it may be parked. An outage parks nothing, however long it lasts."""
    final: bool = False
    """It cannot ever get through as it is: parked at once."""


class OutboxStore:
    """Claims, marks, gives back. Times are the database's own, so that clocks of relays may differ (T52)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.types = list(settings.outbox_topics)

    async def claim(self, connection: Connection, token: str, *, leftovers: bool = False) -> list[Record]:
        """A batch under a lease, in the order of each aggregate. `leftovers`: only what failed or was requeued."""
        s = self._settings
        rows = await connection.fetch(
            SQL["claim"], token, s.outbox_lease, s.outbox_batch_size, self.types, CLAIM_BYTES, leftovers
        )
        rows.sort(key=_version)  # RETURNING has no order
        return rows

    async def mark(self, connection: Connection, token: str, seqs: Sequence[int]) -> int:
        """Published; how many of them were still held under this lease."""
        return _count(await connection.execute(SQL["mark"], token, seqs))

    async def release(self, connection: Connection, token: str, seqs: Sequence[int]) -> int:
        """Given back untried; how many of them were still held."""
        return _count(await connection.execute(SQL["release"], token, seqs))

    async def fail(self, connection: Connection, token: str, failures: Mapping[int, Failure]) -> list[Record]:
        """Put off with a growing wait, or parked; the rows that were still held, as they stand now."""
        s = self._settings
        found = failures.values()
        return await connection.fetch(
            SQL["fail"], token, list(failures), [f.error for f in found], [f.counts for f in found],
            [f.final for f in found], s.outbox_backoff, s.outbox_backoff_max, s.outbox_max_attempts,
        )  # fmt: skip

    async def next_due(self, connection: Connection) -> float | None:
        """Seconds until a row becomes free that is not free now."""
        seconds: float | None = await connection.fetchval(SQL["next_due"], self._settings.outbox_lease)
        return seconds

    async def stats(self, connection: Connection) -> dict[str, Any]:
        """Counts, ages and rates; the names are those of `millstream outbox stats --json`."""
        row = await connection.fetchrow(SQL["stats"], self._settings.outbox_lease, self.types)
        assert row is not None
        return dict(row)

    async def parked(self, connection: Connection, limit: int = 20) -> list[Record]:
        """Events that were given up, the longest parked first."""
        return await connection.fetch(SQL["parked"], limit)

    async def requeue(
        self,
        connection: Connection,
        events: Sequence[UUID] = (),
        *,
        parked: bool = False,
        since: datetime | None = None,
    ) -> tuple[int, list[str]]:
        """Publish (again); how many, and which of `events` are not there. A repeated event keeps its id."""
        missing = [row["given"] for row in await connection.fetch(SQL["missing"], events)] if events else []
        done = _count(await connection.execute(SQL["requeue"], events, parked, since))
        if done:
            await connection.execute("SELECT pg_notify($1, 'requeued')", CHANNEL)
        return done, missing

    async def prunable(self, connection: Connection, older_than: float) -> int:
        """How many `prune` would delete."""
        count: int = await connection.fetchval(SQL["prunable"], older_than)
        return count

    async def prune(self, connection: Connection, older_than: float) -> int:
        """Delete what was published more than so many seconds ago; how many. Nothing unpublished is ever deleted."""
        done = 0
        while count := _count(await connection.execute(SQL["prune"], older_than, PRUNE_ROWS)):
            done += count
        return done

    async def export(self, connection: Connection, since: datetime | None = None) -> AsyncIterator[dict[str, Any]]:
        """What is not published yet, and with `since` everything that occurred from then on; in one snapshot."""
        async with connection.transaction(readonly=True):
            async for row in connection.cursor(SQL["export"], since, prefetch=500):
                yield dict(row) | {"headers": json.loads(row["headers"])}


def _version(row: Record) -> int:
    version: int = row["version"]
    return version


def _count(status: str) -> int:
    return int(status.rpartition(" ")[2])
