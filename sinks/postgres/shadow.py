"""The projection built anew in a schema of its own, beside the live one: made, compared, put into its place, dropped.

What the live projection takes in meanwhile is not lost: the swap begins with a lock that stops writers, looks which
events the shadow has not taken in, has them read, and is called off if any is left. Readers see old rows or new ones.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import asyncpg

from millstream.errors import ConfigError, PostgresError
from millstream.failpoints import declare, failpoint
from millstream.postgres import Connection, load

SCHEMA = "catalog_rebuild"
TEMPORARY = "pg_temp"
"""The same tables for one session."""
SINKS = "replay rebuild "
"""What the sinks that write the shadow are called, to begin with (`millstream.positions`)."""
FIRST = 10
"""Keys that are named of each kind of difference."""
SLOW = 6 * 3600.0
"""Seconds that a statement over whole tables may take."""
SWAPPED = declare("replay.swapped", "the rebuilt tables are in place, the transaction is open")
KINDS = {
    "missing": "only in the live projection",
    "extra": "only in the rebuilt one",
    "different": "in both, with other content",
    "ahead": "the rebuilt one has taken in events that the live one has still to come",
    "behind": "the live one has taken in events that were not read",
}

_SQL = load("sinks.postgres", "shadow.sql")
_BUSY = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)


class Unread(NamedTuple):
    """Events of one partition that the live projection holds and the shadow does not."""

    topic: str
    partition: int
    events: int
    first: int
    last: int
    event: str
    """The id of one of them."""


class Difference(NamedTuple):
    """Rows of one kind."""

    rows: int
    first: list[str]
    """Keys, FIRST of them at most."""


Diff = Mapping[str, Difference]


class SwapRefusedError(PostgresError):
    """The tables cannot be exchanged. Nothing was changed; the text says why and what to do."""


async def found(connection: Connection) -> str | None:
    """What the shadow that stands there is of; None if there is none."""
    row = await connection.fetchrow(_SQL["exists"])
    return None if row is None else str(row[0] or "")


async def create(connection: Connection, described: str) -> None:
    """Make the shadow's tables, empty."""
    async with connection.transaction():
        await connection.execute(_SQL["create"])
        await connection.execute(_SQL["describe"].replace("{text}", await _quoted(connection, described)))


async def drop(connection: Connection) -> None:
    """Remove the shadow, and how far it has come."""
    async with connection.transaction():
        await connection.execute(_SQL["drop"])
        await connection.execute(_SQL["forget"], SINKS)


async def make_temporary(connection: Connection) -> None:
    """Tables of the same kind that only this session sees; everything else is read only for it from now on."""
    await connection.execute(_SQL["temporary"])
    await connection.execute("SET default_transaction_read_only = on")


async def seed(connection: Connection, videos: Sequence[str]) -> None:
    """What the live projection holds of these videos, into the temporary tables."""
    await connection.execute(_SQL["seed"], videos)


async def diff(connection: Connection, schema: str = SCHEMA) -> Diff:
    """The live projection against the one in `schema`; kinds as in KINDS, those without rows left out."""
    names = {
        "live": "catalog.video_projection",
        "new": f"{schema}.video_projection",
        "live_inbox": "catalog.inbox_events",
        "new_inbox": f"{schema}.inbox_events",
    }
    return await _differences(connection, "diff", names)


async def touched(connection: Connection) -> Diff:
    """Rows that a dry run into the live projection would create and change."""
    return await _differences(connection, "touched", {})


async def unread(connection: Connection) -> list[Unread]:
    """Events that the live projection holds and the shadow does not."""
    return [Unread(*row) for row in await connection.fetch(_SQL["unread"], timeout=SLOW)]


async def swap(
    connection: Connection, catch_up: Callable[[list[Unread]], Awaitable[None]], *, force: bool = False
) -> int:
    """Put the shadow into the place of the live tables; how many events were given up by that (`force`).

    `catch_up` is called under the lock, with what the live agents applied last. Raises SwapRefusedError,
    asyncpg's errors.
    """
    await connection.execute(_SQL["analyze"], timeout=SLOW)
    try:
        async with connection.transaction():
            await connection.execute(_SQL["lock"])
            if left := await unread(connection):
                await catch_up(left)
                left = await unread(connection)
            if left and not force:
                raise SwapRefusedError(_untaken(left))
            short = await connection.fetchrow(_SQL["short"], timeout=SLOW)
            if short is not None and short["videos"] and not force:
                raise SwapRefusedError(_short(short["videos"], short["video"]))
            await _check(connection)
            await connection.execute(_SQL["swap"])
            await connection.execute(_SQL["forget"], SINKS)
            failpoint(SWAPPED)
    except _BUSY as exc:
        raise SwapRefusedError(
            "the tables are in use by a long transaction: nothing was changed. End it (pg_stat_activity), or try again"
        ) from exc
    except asyncpg.DependentObjectsStillExistError as exc:
        raise SwapRefusedError(
            f"something depends on the live tables that cannot be moved over: {exc.detail or exc}. Nothing was "
            "changed; drop it, swap, and create it again"
        ) from exc
    return sum(part.events for part in left)


async def _check(connection: Connection) -> None:
    if changed := await connection.fetch(_SQL["changed"]):
        raise SwapRefusedError(
            f"table catalog.{changed[0][0]} was altered since the rebuild began (column {changed[0][1]}): nothing was "
            "changed. Begin anew with --no-resume"
        )
    if attached := await connection.fetch(_SQL["attached"]):
        raise SwapRefusedError(
            f"a swap would lose {', '.join(row[0] for row in attached)}: nothing was changed. Drop it, swap, and "
            "create it again"
        )


def _untaken(left: list[Unread]) -> str:
    at = left[0]
    return (
        f"{sum(part.events for part in left)} events of the live projection were not read, the first in {at.topic}, "
        f"partition {at.partition}, offset {at.first} ({at.event}): the source no longer has them, or the replay began "
        "behind them. Nothing was changed. Rebuild from the outbox or from an earlier place, or swap with --force to "
        "give them up"
    )


def _short(videos: int, first: str) -> str:
    return (
        f"of {videos} videos, {first} among them, fewer events were read than the live projection has applied (which "
        "ones is forgotten: the inbox was pruned). Nothing was changed. Rebuild from the outbox or from an earlier "
        "place, or swap with --force to give them up"
    )


async def _differences(connection: Connection, name: str, names: Mapping[str, str]) -> Diff:
    sql = _SQL[name].replace("{first}", str(FIRST))
    for key, table in names.items():
        sql = sql.replace(f"{{{key}}}", table)
    rows = await connection.fetch(sql, timeout=SLOW)
    return {row["kind"]: Difference(row["count"], row["first"]) for row in rows}


async def _quoted(connection: Connection, text: str) -> str:
    quoted = await connection.fetchval("SELECT quote_literal($1::text)", text)
    if not isinstance(quoted, str):
        raise ConfigError("Postgres quotes nothing")
    return quoted
