"""The outbox table under relays: leases, order, retries. Each scenario on a real Postgres."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from millstream.postgres import Connection
from millstream.settings import Settings
from sources.outbox.store import Failure, OutboxStore
from tests.integration.outbox.world import AGGREGATES, insert, insert_many, rows


def store(**values: Any) -> OutboxStore:
    return OutboxStore(Settings(**({"outbox_lease": 60.0, "outbox_publish_timeout": 10.0} | values)))


def versions(claimed: list[Any]) -> list[int]:
    return [row["version"] for row in claimed]


async def test_a_claim_leases_rows_oldest_first_and_says_who_has_them(db: Connection) -> None:  # RO-16, RO-39
    for n in range(5):
        await insert(db, n, 1)
    claimed = await store(outbox_batch_size=3).claim(db, "me")
    assert sorted(row["key"] for row in claimed) == [str(AGGREGATES[n]) for n in range(3)]
    leased = [r for r in (await rows(db, "aggregate_id")).values() if r["lock_token"] is not None]
    assert {(r["lock_token"], r["aggregate_id"]) for r in leased} == {("me", AGGREGATES[n]) for n in range(3)}
    assert all(abs(r["locked_at"] - datetime.now(UTC)) < timedelta(minutes=5) for r in leased)


async def test_two_relays_at_once_never_claim_the_same_row(db: Connection, db2: Connection) -> None:  # RO-46
    total = await insert_many(db, 40, 5)
    seen: list[int] = []

    async def relay(connection: Connection, name: str) -> None:
        while claimed := await store(outbox_batch_size=7).claim(connection, f"{name}-{len(seen)}"):
            seen.extend(row["seq"] for row in claimed)
            token = await connection.fetchval("SELECT lock_token FROM catalog.outbox_events WHERE seq = $1", seen[-1])
            assert await store().mark(connection, token, [row["seq"] for row in claimed]) == len(claimed)

    while len(seen) < total:  # one that finds everything held back by the other ends early
        await asyncio.gather(relay(db, "a"), relay(db2, "b"))
    assert len(seen) == len(set(seen)) == total


async def test_a_row_that_another_transaction_locks_is_skipped_and_so_are_later_ones_of_its_aggregate(
    db: Connection, db2: Connection
) -> None:  # T50
    for aggregate, version in [(0, 1), (0, 2), (1, 1)]:
        await insert(db, aggregate, version)
    async with db2.transaction():
        await db2.execute("SELECT FROM catalog.outbox_events WHERE aggregate_id = $1 AND version = 1 FOR UPDATE",
                          AGGREGATES[0])  # fmt: skip
        claimed = await store().claim(db, "me")
        assert [row["key"] for row in claimed] == [str(AGGREGATES[1])]
    assert versions(await store().claim(db, "me2")) == [1, 2]


async def test_a_live_lease_is_left_alone_and_a_stale_one_is_taken_over(db: Connection) -> None:  # T52
    event = await insert(db, 0, 1)
    (first,) = await store().claim(db, "a")
    assert await store().claim(db, "b") == []
    await db.execute("UPDATE catalog.outbox_events SET locked_at = locked_at - interval '61 s'")
    (second,) = await store().claim(db, "b")
    assert second["event_id"] == first["event_id"] == event
    assert await store().mark(db, "a", [first["seq"]]) == 0  # a hears that its lease is lost
    assert await store().mark(db, "b", [first["seq"]]) == 1


async def test_a_wrong_token_marks_fails_and_releases_nothing(db: Connection) -> None:
    await insert(db, 0, 1)
    (row,) = await store().claim(db, "me")
    assert await store().mark(db, "other", [row["seq"]]) == 0
    assert await store().release(db, "other", [row["seq"]]) == 0
    assert await store().fail(db, "other", {row["seq"]: Failure("no")}) == []
    assert (await rows(db))[1]["lock_token"] == "me"


async def test_published_at_is_written_once(db: Connection) -> None:  # T52
    await insert(db, 0, 1)
    (row,) = await store().claim(db, "me")
    assert await store().mark(db, "me", [row["seq"]]) == 1
    before = (await rows(db))[1]
    assert await store().mark(db, "me", [row["seq"]]) == 0
    assert (await rows(db))[1] == before
    assert before["published_at"] is not None
    assert (before["lock_token"], before["locked_at"]) == (None, None)


async def test_what_is_rolled_back_was_never_there(db: Connection, db2: Connection) -> None:
    undone = db2.transaction()
    await undone.start()
    await insert(db2, 0, 1)
    assert await store().claim(db, "me") == []  # not before the commit
    await undone.rollback()
    assert await store().claim(db, "me") == []


async def test_a_row_that_commits_late_with_a_small_number_is_not_passed_over(
    db: Connection, db2: Connection
) -> None:  # T55
    late = db2.transaction()
    await late.start()
    await insert(db2, 0, 1)  # seq 1
    await insert(db, 1, 1)  # seq 2 commits first
    (row,) = await store().claim(db, "me")
    await store().mark(db, "me", [row["seq"]])
    await late.commit()
    (row,) = await store().claim(db, "me2")
    assert row["key"] == str(AGGREGATES[0])


async def test_an_event_id_and_a_version_exist_once(db: Connection) -> None:  # RO-15
    event = await insert(db, 0, 1)
    with pytest.raises(asyncpg.UniqueViolationError, match="outbox_events_pkey"):
        await db.execute("INSERT INTO catalog.outbox_events (event_id, aggregate_type, aggregate_id, event_type, "
                         "version, payload) VALUES ($1, 'video', $2, 't', 9, '')", event, AGGREGATES[5])  # fmt: skip
    with pytest.raises(asyncpg.UniqueViolationError, match="version"):  # T49
        await insert(db, 0, 1)


@pytest.mark.parametrize("version", [0, -1])
async def test_a_version_begins_at_one(db: Connection, version: int) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await insert(db, 0, version)


async def test_a_failed_event_waits_and_holds_back_later_ones_of_its_aggregate_only(db: Connection) -> None:  # T50
    for aggregate, version in [(0, 1), (0, 2), (1, 1)]:
        await insert(db, aggregate, version)
    claimed = await store().claim(db, "me")
    first = next(row for row in claimed if row["key"] == str(AGGREGATES[0]) and row["version"] == 1)
    (told,) = await store(outbox_backoff=60.0).fail(db, "me", {first["seq"]: Failure("broker is away")})
    assert (told["delivery_attempts"], told["last_error"], told["parked_at"]) == (1, "broker is away", None)  # RO-18
    await store().release(db, "me", [row["seq"] for row in claimed if row["seq"] != first["seq"]])
    assert [row["key"] for row in await store().claim(db, "me2")] == [str(AGGREGATES[1])]
    due = await store().next_due(db)
    assert due is not None
    assert 30 < due <= 60
    await db.execute("UPDATE catalog.outbox_events SET available_at = now()")
    assert versions(await store().claim(db, "me3")) == [1, 2]


@pytest.mark.parametrize(
    ("attempts", "seconds"), [(0, 2), (1, 4), (2, 8), (5, 64), (6, 120), (31, 120), (33, 120), (500, 120)]
)
async def test_the_wait_doubles_up_to_its_bound_and_never_overflows(
    db: Connection, attempts: int, seconds: int
) -> None:  # T54: 2 s << 33 was 2 s again
    await insert(db, 0, 1)
    await db.execute("UPDATE catalog.outbox_events SET delivery_attempts = $1", attempts)
    (row,) = await store().claim(db, "me")
    (told,) = await store().fail(db, "me", {row["seq"]: Failure("no", counts=False)})
    waits = await db.fetchval("SELECT available_at - now() FROM catalog.outbox_events")
    assert seconds - 1 < waits.total_seconds() <= seconds
    assert told["parked_at"] is None  # an outage parks nothing, however long it lasts


async def test_after_the_last_attempt_an_event_is_parked_and_holds_back_its_aggregate(db: Connection) -> None:  # T54
    for aggregate, version in [(0, 1), (0, 2), (0, 3), (1, 1)]:
        await insert(db, aggregate, version)
    claimed = await store().claim(db, "me")
    bad = next(row for row in claimed if row["key"] == str(AGGREGATES[0]) and row["version"] == 1)
    await db.execute("UPDATE catalog.outbox_events SET delivery_attempts = 2 WHERE seq = $1", bad["seq"])
    (told,) = await store(outbox_max_attempts=3).fail(db, "me", {bad["seq"]: Failure("refused", counts=True)})
    assert told["parked_at"] is not None
    assert told["held"] == 2
    await store().release(db, "me", [row["seq"] for row in claimed])
    assert [row["key"] for row in await store().claim(db, "me2")] == [str(AGGREGATES[1])]
    stats = await store().stats(db)
    assert (stats["pending"], stats["parked"], stats["held"], stats["leased"]) == (4, 1, 2, 1)
    assert [row["version"] for row in await store().parked(db)] == [1]


async def test_requeued_events_go_again_in_order(db: Connection) -> None:  # RO-82
    events = [await insert(db, 0, version) for version in (1, 2, 3)]
    claimed = await store().claim(db, "me")
    await store().mark(db, "me", [row["seq"] for row in claimed[:2]])
    await store().fail(db, "me", {claimed[2]["seq"]: Failure("refused", counts=True, final=True)})
    assert await store().requeue(db, parked=True) == (1, [])
    absent = UUID(int=7)
    assert await store().requeue(db, [events[0], absent]) == (1, [str(absent)])
    assert versions(await store().claim(db, "again", leftovers=True)) == [1, 3]
    assert await store().requeue(db, since=datetime.now(UTC) - timedelta(hours=1)) == (1, [])  # leased ones stay
    assert await store().requeue(db, since=datetime.now(UTC) + timedelta(hours=1)) == (0, [])


async def test_only_what_was_published_long_ago_is_pruned(db: Connection) -> None:
    for version in (1, 2, 3):
        await insert(db, 0, version)
    claimed = await store().claim(db, "me")
    await store().mark(db, "me", [row["seq"] for row in claimed[:2]])
    await db.execute("UPDATE catalog.outbox_events SET published_at = now() - interval '8 days' WHERE version = 1")
    await db.execute("UPDATE catalog.outbox_events SET occurred_at = now() - interval '1 year'")
    assert await store().prunable(db, 7 * 86400) == 1
    assert await store().prune(db, 7 * 86400) == 1
    assert list(await rows(db)) == [2, 3]


async def test_a_claim_is_bounded_by_bytes_and_takes_at_least_one(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sources.outbox.store.CLAIM_BYTES", 1000)
    for version in (1, 2, 3):
        await insert(db, 0, version, bytes(900))
    assert versions(await store().claim(db, "a")) == [1, 2]
    await db.execute("DELETE FROM catalog.outbox_events WHERE version < 3")
    await insert(db, 1, 1, bytes(5000))
    assert len(await store().claim(db, "b")) == 2


async def test_other_aggregate_types_are_left_to_their_own_relay_and_told(db: Connection) -> None:
    await insert(db, 0, 1, kind="order")
    assert await store().claim(db, "me") == []
    assert (await store().stats(db))["unrouted"] == 1
    assert len(await store(outbox_topics={"order": "orders"}).claim(db, "me")) == 1


async def test_a_large_backlog_behind_a_parked_event_is_claimed_past(db: Connection) -> None:  # T54
    await insert_many(db, 1, 20_000)
    await db.execute("UPDATE catalog.outbox_events SET parked_at = now() WHERE version = 1")
    await insert(db, 50, 1)
    assert [row["key"] for row in await store().claim(db, "me")] == [str(AGGREGATES[50])]
    plan = "\n".join(r[0] for r in await db.fetch("EXPLAIN " + _claim_text()))
    assert "outbox_events_order" in plan
    assert "SubPlan" in plan  # a probe per row, and no join that reads all that is pending


def _claim_text() -> str:
    from sources.outbox.store import SQL

    text = SQL["claim"]
    for name, value in {
        "$1": "'t'",
        "$2": "60",
        "$3": "500",
        "$4": "'{video}'",
        "$5": "1000000",
        "$6": "false",
    }.items():
        text = text.replace(name, value)
    return text
