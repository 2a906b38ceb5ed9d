"""Videos, written together with their events: an example of a repository on the outbox.

Each command takes the video's row lock first, raises the row's own version by one, and tells of it under that version
(T48). A command may carry an id, which is then the event's id: sent again, it gives back the first answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from millstream.errors import MillstreamError
from millstream.postgres import Connection, load
from schemas.events import CREATED, DELETED, UPDATED, Event
from sources.outbox.message import rfc3339
from sources.outbox.writer import OutboxTransaction, Token, is_repeated, transaction

_SQL = load("sources.outbox", "videos.sql")
FIELDS = (
    "title",
    "description",
    "duration_micros",
    "status",
    "media_status",
    "analysis_status",
    "thumbnail_url",
    "hls_master_playlist",
    "difficulty",
    "summary",
    "tags",
    "raw_subtitle_url",
    "published_at",
)
"""What `update` may change."""
DEFAULTS = {"status": "pending_upload", "media_status": "pending", "analysis_status": "pending"}


class VideoExistsError(MillstreamError):
    """There is a video with this id already."""


class VideoNotFoundError(MillstreamError):
    """There is no video with this id, or it was deleted."""


class Videos:
    """Commands on `catalog.videos`. Raises asyncpg's errors, and those of `transaction` and `emit`."""

    def __init__(self, connection: Connection, **options: Any) -> None:
        """`options` are those of `transaction`."""
        self._connection, self._options = connection, options

    async def create(
        self,
        video_id: UUID,
        uploader_id: UUID,
        title: str,
        *,
        description: str | None = None,
        duration_micros: int | None = None,
        command_id: UUID | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Token:
        """Raises VideoExistsError."""
        given = {"title": title, "description": description, "duration_micros": duration_micros, **DEFAULTS}

        async def do(tx: OutboxTransaction, event_id: UUID) -> Token:
            row = await tx.connection.fetchrow(_SQL["create"], video_id, uploader_id, *given.values())
            if row is None:
                if found := await tx.done(event_id, CREATED, video_id):
                    return found
                raise VideoExistsError(f"video {video_id} exists already: use another id, or update it")
            payload = {"uploader_id": str(uploader_id)} | {k: v for k, v in given.items() if v is not None}
            return await tx.emit(_event(event_id, CREATED, video_id, row, payload), headers)

        return await self._command(do, command_id, CREATED, video_id)

    async def update(
        self,
        video_id: UUID,
        changes: Mapping[str, Any],
        *,
        command_id: UUID | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Token:
        """Sets fields (None clears one); only those whose value is another one are told (T47).

        Nothing changes: no event, and a token without event_id. Raises VideoNotFoundError, ValueError (unknown field).
        """
        if unknown := changes.keys() - set(FIELDS):
            raise ValueError(f"a video has no field {min(unknown)!r} that can be set; known are {', '.join(FIELDS)}")

        async def do(tx: OutboxTransaction, event_id: UUID) -> Token:
            before = await tx.connection.fetchrow(_SQL["lock"], video_id)
            if found := await tx.done(event_id, UPDATED, video_id):
                return found
            if before is None:
                raise VideoNotFoundError(f"video {video_id} does not exist")
            changed = {name: value for name, value in changes.items() if before[name] != value}
            if not changed:
                return Token(None, before["version"], before["updated_at"])
            row = await tx.connection.fetchrow(
                _SQL["update"].format(fields="".join(f", {name} = ${at}" for at, name in enumerate(changed, 2))),
                video_id,
                *changed.values(),
            )
            payload = {name: _plain(value) for name, value in changed.items()}
            return await tx.emit(_event(event_id, UPDATED, video_id, row, payload), headers)

        return await self._command(do, command_id, UPDATED, video_id)

    async def delete(
        self,
        video_id: UUID,
        *,
        reason: str | None = None,
        command_id: UUID | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Token:
        """The event's version is one above the last one of the row. Raises VideoNotFoundError."""

        async def do(tx: OutboxTransaction, event_id: UUID) -> Token:
            row = await tx.connection.fetchrow(_SQL["delete"], video_id)
            if row is None:
                if found := await tx.done(event_id, DELETED, video_id):
                    return found
                raise VideoNotFoundError(f"video {video_id} does not exist")
            payload = {"deleted_at": rfc3339(row["updated_at"])} | ({"reason": reason} if reason is not None else {})
            return await tx.emit(_event(event_id, DELETED, video_id, row, payload), headers)

        return await self._command(do, command_id, DELETED, video_id)

    async def _command(
        self,
        do: Callable[[OutboxTransaction, UUID], Awaitable[Token]],
        command_id: UUID | None,
        event_type: str,
        video_id: UUID,
    ) -> Token:
        try:
            async with transaction(self._connection, **self._options) as tx:
                return await do(tx, command_id or uuid4())
        except asyncpg.UniqueViolationError as e:
            if command_id is None or not is_repeated(e):
                raise
        # The same command ran in another session just now; it has committed, or we would still wait for it.
        async with transaction(self._connection, **self._options) as tx:
            found = await tx.done(command_id, event_type, video_id)
            assert found is not None, "its row was there a moment ago"
            return found


def _event(event_id: UUID, event_type: str, video_id: UUID, row: Any, payload: Mapping[str, Any]) -> Event:
    return Event(
        event_id=str(event_id),
        event_type=event_type,
        aggregate_id=str(video_id),
        version=row["version"],
        occurred_at=row["updated_at"],
        payload=payload,
    )


def _plain(value: Any) -> Any:
    return rfc3339(value) if isinstance(value, datetime) else value
