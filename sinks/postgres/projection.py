"""Events of videos into the projection: inbox, merge, and errors, in the transaction of their chunk.

Whatever writes the projection goes through here. The result does not depend on order or on chunks: each field is a
register that the greatest (version, event id) wins, versions of creation and deletion only grow (T44-T46).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import asyncpg
import pyarrow as pa
import pyarrow.compute as pc

from millstream.errors import ConfigError
from millstream.failpoints import declare, failpoint
from millstream.postgres import Connection, load
from schemas.chunk import Chunk

RECEIVED = declare("postgres.projection.received", "events are in the inbox, the projection is not changed")
MERGED = declare("postgres.projection.merged", "events are in the projection, their errors are not recorded")

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_TABLES = ("inbox_events", "video_projection", "projection_errors")


class _Event(NamedTuple):
    """One row of the chunk that can be applied."""

    event_id: str
    event_type: str
    aggregate_id: str
    version: int
    changes: str
    digest: bytes
    offset: int


class _Error(NamedTuple):
    """One row for `projection_errors`."""

    digest: bytes
    kind: str
    error: str
    event_id: str | None
    event_type: str | None
    aggregate_id: str | None
    version: int | None
    offset: int
    key: bytes | None = None
    value: bytes | None = None
    headers: str | None = None


_EVENT = ("event_id", "event_type", "aggregate_id", "version", "changes", "digest", "_offset")
_ERROR = ("digest", "error_kind", "error", "event_id", "event_type", "aggregate_id", "version", "_offset",
          "key", "value", "headers")  # fmt: skip


class VideoProjection:
    """`Apply` of a PostgresStream whose chunks are tables of `schemas.events.codec`.

    `schema` names the database schema with the tables: `catalog`, or that of a rebuild with an inbox of its own.
    Details of the receipt are numbers: `applied` events, `duplicates` (silent), `conflicts` and `errors` (recorded).
    With `again` events that the inbox knows are merged too: a row that is right stays as it is, one that lacks
    something gets it (T58); then `created` and `changed` count the rows.
    """

    def __init__(self, schema: str = "catalog", *, again: bool = False) -> None:
        if _SCHEMA.fullmatch(schema) is None:
            raise ConfigError(f"schema {schema!r}: a plain name in lower case is needed")
        self.schema, self._again = schema, again
        self._sql = {k: v.replace("{schema}", schema) for k, v in load("sinks.postgres", "projection.sql").items()}

    async def check(self, connection: Connection) -> None:
        """Raises ConfigError for a table that is missing."""
        for table in _TABLES:
            if await connection.fetchval("SELECT to_regclass($1) IS NULL", f"{self.schema}.{table}"):
                raise ConfigError(f"Postgres has no table {self.schema}.{table}: run `millstream migrate`")

    async def __call__(self, connection: Connection, chunk: Chunk) -> dict[str, str]:
        """Take in a chunk with a handful of statements."""
        events, errors = _read(chunk.records)
        fresh, conflicts = await self._receive(connection, chunk, events)
        failpoint(RECEIVED)
        reused = [_reused(e) for e in conflicts]
        # Known ids with other content take part once, whichever of the two came first.
        new = await self._record(connection, chunk, reused)
        late = {error.digest: e for error, e in zip(reused, conflicts, strict=True) if error.digest in new}
        applied = [*fresh, *late.values()]
        rows = await self._merge_again(connection, events, applied) if self._again else {}
        if not self._again:
            await self._merge(connection, applied)
        failpoint(MERGED)
        collided = await self._collisions(connection, fresh)
        await self._record(connection, chunk, collided + errors)
        counts = {
            "applied": len(applied),
            "duplicates": len(events) - len(fresh) - len(conflicts),
            "conflicts": len(conflicts) + len(collided),
            "errors": len(errors),
            **rows,
        }
        return {name: str(n) for name, n in counts.items()}

    async def failed(self, connection: Connection, chunk: Chunk, error: Exception) -> None:
        """The chunk was rolled back: put down why, in a transaction of its own (T56)."""
        at, text = chunk.id, f"{type(error).__name__}: {error}"
        digest = blake2b(f"{at}/{text}".encode(), digest_size=16).digest()
        told = f"offsets {at.first}..{at.last} were not applied: {text}"
        await self._record(connection, chunk, [_Error(digest, "not_applied", told, None, None, None, None, at.first)])

    async def _receive(
        self, connection: Connection, chunk: Chunk, events: list[_Event]
    ) -> tuple[list[_Event], list[_Event]]:
        """Events that are new, and those whose id is known with other content. Redeliveries are in neither."""
        if not events:
            return [], []
        ids, types, videos, versions, _, digests, offsets = zip(*events, strict=True)
        at = chunk.id
        rows = await connection.fetch(
            self._sql["inbox"], ids, types, videos, versions, digests, offsets, at.topic, at.partition
        )
        held = {str(row["event_id"]): row["digest"] for row in rows}
        new = set(held)
        if len(new) < len(events) and (others := [i for i in set(ids) if i not in new]):
            rows = await connection.fetch(self._sql["held"], others)
            held |= {str(row["event_id"]): row["digest"] for row in rows}
        fresh, changed = [], []
        for e in events:
            if held[e.event_id] != e.digest:
                changed.append(e)
            elif e.event_id in new:
                new.discard(e.event_id)
                fresh.append(e)
        return fresh, changed

    async def _collisions(self, connection: Connection, fresh: list[_Event]) -> list[_Error]:
        """New events with a version that another event of their video has, with other content (T49)."""
        if not fresh:
            return []
        ids, _, videos, versions, _, digests, _ = zip(*fresh, strict=True)
        rows = await connection.fetch(self._sql["collisions"], ids, videos, versions, digests)
        other = {str(row["event_id"]): row["other"] for row in rows}
        return [_collided(e, other[e.event_id]) for e in fresh if e.event_id in other]

    async def _merge(self, connection: Connection, events: list[_Event]) -> None:
        if events:
            ids, types, videos, versions, changes, _, _ = zip(*events, strict=True)
            await connection.execute(self._sql["merge"], ids, types, videos, versions, changes)

    async def _merge_again(self, connection: Connection, events: list[_Event], applied: list[_Event]) -> dict[str, int]:
        """Merge events whether they were merged before or not; rows created and changed by it."""
        videos = sorted({e.aggregate_id for e in events})
        before = await self._states(connection, videos)
        await self._merge(connection, events)
        counts = [before[v][0] if v in before else 0 for v in videos]
        new = [e.aggregate_id for e in applied], [e.version for e in applied]
        await connection.execute(self._sql["recount"], videos, counts, *new)
        after = await self._states(connection, videos)
        created = len(after) - len(before)
        return {"created": created, "changed": sum(before.get(v) != s for v, s in after.items()) - created}

    async def _states(self, connection: Connection, videos: list[str]) -> dict[str, tuple[int, int]]:
        rows = await connection.fetch(self._sql["states"], videos)
        return {str(row["video_id"]): (row["events_applied"], row["state"]) for row in rows}

    async def _record(self, connection: Connection, chunk: Chunk, errors: list[_Error]) -> set[bytes]:
        """Digests of those that were not on record before."""
        if not errors:
            return set()
        seen = Counter(e.digest for e in errors)
        unique = {e.digest: (*e, seen[e.digest]) for e in reversed(errors)}  # the first one of equal ones
        columns = zip(*unique.values(), strict=True)
        rows = await connection.fetch(self._sql["errors"], *columns, chunk.id.topic, chunk.id.partition)
        return {row["digest"] for row in rows if row["is_new"]}


def _read(table: pa.Table) -> tuple[list[_Event], list[_Error]]:
    refused = pc.is_valid(table.column("error_kind"))
    good, bad = table.filter(pc.invert(refused)), table.filter(refused)
    return [_Event(*row) for row in _rows(good, _EVENT)], [_Error(*row) for row in _rows(bad, _ERROR)]


def _rows(table: pa.Table, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    # No other columns: pyarrow imports pandas for the times among them, which takes longer than all the rest.
    return zip(*(table.column(name).to_pylist() for name in names), strict=True)


def _reused(e: _Event) -> _Error:
    digest = blake2b(b"event_id\0" + e.event_id.encode() + e.digest, digest_size=16).digest()
    text = f"event id {e.event_id} is known with other content: an id is used once. The fields were merged by version"
    return _Error(digest, "event_id", text, e.event_id, e.event_type, e.aggregate_id, e.version, e.offset)


def _collided(e: _Event, other: asyncpg.pgproto.pgproto.UUID) -> _Error:
    digest = blake2b(b"equal_version\0" + e.event_id.encode(), digest_size=16).digest()
    text = f"event {other} has version {e.version} too, with other content: of equal versions the greater event id wins"
    return _Error(digest, "equal_version", text, e.event_id, e.event_type, e.aggregate_id, e.version, e.offset)
