"""The writer's side: the business row and its event are committed together, or neither is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg

from millstream.errors import MillstreamError
from millstream.failpoints import declare, failpoint
from millstream.postgres import Connection
from schemas.events import MAX_VALUE_BYTES, Event, PayloadTooLargeError, encode_json, encode_protobuf, headers_of
from sources.outbox.store import SQL

WRITTEN = declare("outbox.written", "business row and event are written, the transaction is open")
COMMITTED = declare("outbox.committed", "the transaction is committed, the caller does not know")
_ENCODERS = {"application/x-protobuf": encode_protobuf, "application/json": encode_json}


class Token(NamedTuple):
    """What a client hands to a reader to see its own write: "at least this version of this aggregate" (RO-93)."""

    event_id: UUID | None
    """None: the command changed nothing, and `version` was there already."""
    version: int
    occurred_at: datetime


class CommandConflictError(MillstreamError):
    """The id of this command was used for another one."""


class OutboxTransaction:
    """An open transaction: do the business writes on `connection`, and tell of each with `emit`."""

    def __init__(self, connection: Connection, max_bytes: int, content_type: str) -> None:
        self.connection = connection
        self._max_bytes, self._content_type = max_bytes, content_type

    async def emit(
        self,
        event: Event,
        headers: Mapping[str, str] | None = None,
        available_at: datetime | None = None,
        source_event_id: UUID | None = None,
    ) -> Token:
        """Write an event. `headers`: optional ones beside its own (correlation_id, trace_id, …; RO-87).

        Raises PayloadTooLargeError, InvalidEventError; then nothing of the transaction must be committed.
        `event.version` is the aggregate's own counter, read under its row lock: that lock is what makes versions, and
        what relays publish, follow the commits (T48). `source_event_id`: the event that led to this one (RO-92).
        """
        payload = _ENCODERS[self._content_type](event, self._max_bytes)
        own = headers_of(event, self._content_type, **(headers or {}))
        token = await self.emit_encoded(event, payload, own, available_at, source_event_id)
        failpoint(WRITTEN)
        return token

    async def emit_encoded(
        self,
        event: Event,
        payload: bytes,
        headers: Mapping[str, str],
        available_at: datetime | None = None,
        source_event_id: UUID | None = None,
    ) -> Token:
        """Write an event of any aggregate, whose payload is encoded already. Raises PayloadTooLargeError (RO-97)."""
        size = len(payload) + sum(len(name) + len(value.encode()) for name, value in headers.items())
        if size > self._max_bytes + HEADER_BYTES:
            raise PayloadTooLargeError(
                f"{event.event_type} {event.event_id} takes {size:,} bytes with its headers, "
                f"{self._max_bytes + HEADER_BYTES:,} are allowed"
            )
        event_id = UUID(event.event_id)
        await self.connection.execute(
            SQL["insert"], event_id, event.aggregate_type, UUID(event.aggregate_id), event.event_type, event.version,
            payload, json.dumps(dict(headers)), event.occurred_at, available_at, source_event_id,
        )  # fmt: skip
        return Token(event_id, event.version, event.occurred_at)

    async def done(self, event_id: UUID, event_type: str, aggregate_id: UUID) -> Token | None:
        """The token of an earlier command with this id. Raises CommandConflictError if that was another command.

        Ask under the lock of the aggregate's row: who had it before has committed by then. The memory reaches as far
        back as the outbox is kept (`millstream outbox prune`).
        """
        row = await self.connection.fetchrow(SQL["done"], event_id)
        if row is None:
            return None
        if (row["event_type"], row["aggregate_id"]) != (event_type, aggregate_id):
            raise CommandConflictError(
                f"{event_type} of {aggregate_id}: the id {event_id} was used for {row['event_type']} of "
                f"{row['aggregate_id']}; give each command an id of its own"
            )
        return Token(event_id, row["version"], row["occurred_at"])


HEADER_BYTES = 16_384
"""Room for headers beyond the payload's limit."""


@asynccontextmanager
async def transaction(
    connection: Connection, *, max_bytes: int = MAX_VALUE_BYTES, content_type: str = "application/x-protobuf"
) -> AsyncIterator[OutboxTransaction]:
    """A transaction with an outbox; commits at the end, rolls back on an error. Within one it is a savepoint of it.

    Give the `max_bytes` that the topic takes: what is larger is refused here, before the commit, where the caller can
    still do something else.
    """
    async with connection.transaction():
        yield OutboxTransaction(connection, max_bytes, content_type)
    failpoint(COMMITTED)


def is_repeated(error: asyncpg.UniqueViolationError) -> bool:
    """Whether another session used this command's id at the same moment: ask `done` in a new transaction."""
    return bool(error.constraint_name == "outbox_events_pkey")
