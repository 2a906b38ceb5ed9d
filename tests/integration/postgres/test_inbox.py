"""The inbox is pruned, and what comes again after that does no harm (T19, T53)."""

from __future__ import annotations

import random

import pytest

from millstream.postgres import Connection
from schemas.events import CREATED, UPDATED
from sinks.postgres import inbox
from sinks.postgres.inbox import prune, prune_alone
from tests.support.projection import Row, apply, errors, fold, held
from tests.unit.events.events import event, history

GAPS = "SELECT version, missing FROM catalog.video_gaps ORDER BY version"


async def inbox_size(connection: Connection) -> int:
    size: int = await connection.fetchval("SELECT count(*) FROM catalog.inbox_events")
    return size


def but_counts(rows: dict[str, Row]) -> dict[str, Row]:
    return {video: row | {"events_applied": 0} for video, row in rows.items()}


async def test_events_that_come_again_after_they_were_pruned_change_nothing(database: Connection) -> None:
    rng = random.Random(5)
    events = [e for video in range(1, 40) for e in history(rng, video, 8)]
    rng.shuffle(events)
    await apply(database, *events[:150])
    assert await prune(database, 0) == 150
    assert await inbox_size(database) == 0
    await apply(database, *events)  # some for the first time, some again
    assert await prune(database, 0) == len(events)
    await apply(database, *rng.sample(events, len(events)))
    assert but_counts(await held(database)) == but_counts(fold(events))
    assert await errors(database) == []
    assert await database.fetch(GAPS) == []


async def test_what_is_recent_stays_and_the_rest_goes_in_batches(
    database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "PRUNE_ROWS", 10)
    await apply(database, *(event(CREATED, 1, None, video) for video in range(1, 36)))
    await database.execute("UPDATE catalog.inbox_events SET received_at = received_at - interval '1 hour'")
    await apply(database, event(UPDATED, 2, None, 1))
    statements: list[str] = []
    database.add_query_logger(lambda q: statements.append(q.query))
    assert await prune(database, 1800) == 35
    assert len(statements) >= 4
    assert await inbox_size(database) == 1


async def test_gaps_are_looked_for_above_what_was_pruned(database: Connection) -> None:
    await apply(database, event(CREATED, 1), event(UPDATED, 4))
    assert [tuple(row) for row in await database.fetch(GAPS)] == [(4, 2)]
    await prune(database, 0)
    assert await database.fetch(GAPS) == []
    await apply(database, event(UPDATED, 7), event(UPDATED, 3))
    assert [tuple(row) for row in await database.fetch(GAPS)] == [(7, 2)]
    await apply(database, event(UPDATED, 6), event(UPDATED, 5))
    assert await database.fetch(GAPS) == []


async def test_of_several_workers_one_prunes(database: Connection, postgres: str) -> None:
    await apply(database, event(CREATED, 1))
    await database.execute("SELECT pg_advisory_lock(hashtext('millstream.inbox'))")
    assert await prune_alone(postgres, 0) == 0
    await database.execute("SELECT pg_advisory_unlock_all()")
    assert await prune_alone(postgres, 0) == 1
