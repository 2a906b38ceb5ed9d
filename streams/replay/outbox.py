"""The events of the outbox table, published or not: for what the topic no longer has. Needs no Kafka.

They are numbered as they are read; the place to go on from is the last event's id. One that is written meanwhile may be
passed over: it is not published yet, so the live workers get it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING
from uuid import UUID

from millstream.errors import ConfigError
from millstream.postgres import Connection, load
from schemas.chunk import ChunkId
from schemas.log_records import LogRecord
from sinks.postgres.shadow import SLOW
from sources.outbox.message import UnfitEventError, message_of
from streams.replay.plan import OutboxPlan
from streams.replay.slices import Held, Slice

if TYPE_CHECKING:
    from asyncpg import Record

NAME = "outbox:catalog.outbox_events"
"""What stands for the topic in `millstream.positions`, and in the inbox."""
_PAGE = 1000
"""Rows of a page at most: payloads may have 1 MB each."""
_SQL = load("streams.replay", "outbox.sql")


class OutboxSource:
    """Raises ConfigError for a row that cannot be an event, asyncpg's errors."""

    def __init__(self, connection: Connection, aggregate_type: str, plan: OutboxPlan) -> None:
        self.topic, self.notes = NAME, list[str]()
        self._connection, self._type, self._plan = connection, aggregate_type, plan
        self._after: UUID | None = None
        self._number = 0
        self._missed = False

    async def prepare(self, held: Mapping[int, Held]) -> int:
        """Go on behind what is held; how many rows there are."""
        if held:
            self._number, self._after = held[0].last + 1, UUID(held[0].cursor)
        count: int = await self._connection.fetchval(
            _SQL["count"], self._type, self._plan.since, self._after, timeout=SLOW
        )
        return count

    def only_missed(self) -> None:
        """From now on only events that the live projection holds and the shadow does not."""
        self._missed = True

    async def slices(self, rows: int) -> AsyncGenerator[Slice, None]:
        """Page by page."""
        after = None if self._missed else self._after
        while found := await self._page(after, min(rows, _PAGE)):
            after = found[-1]["event_id"]
            if not self._missed:
                self._after = after
            first, self._number = self._number, self._number + len(found)
            records = [record_of(row, number) for number, row in enumerate(found, first)]
            at = ChunkId(NAME, "", 0, 0, first, self._number - 1)
            yield Slice(at, records, str(self._after or after))

    async def _page(self, after: UUID | None, rows: int) -> list[Record]:
        name = "unread" if self._missed else "page"
        return await self._connection.fetch(_SQL[name], self._type, self._plan.since, after, rows, timeout=SLOW)


def record_of(row: Record, number: int) -> LogRecord:
    """A row as a record of a topic, at offset `number`. Raises ConfigError for one that cannot be an event."""
    try:
        message = message_of(row, {row["aggregate_type"]: NAME})
    except UnfitEventError as exc:
        raise ConfigError(
            f"outbox event {row['event_id']} cannot be an event: {exc}. Mend or delete the row, then start again"
        ) from exc
    stamp = int(row["occurred_at"].timestamp() * 1000)
    headers: list[tuple[str, bytes | None]] = [*message.headers]
    return LogRecord(number, stamp, 0, message.key, message.value, headers)
