"""Business row and event in one transaction, versions under the row lock, commands that may be sent twice."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import pytest

from millstream.postgres import Connection
from schemas.events import Event, InvalidEventError, PayloadTooLargeError, decode
from sources.outbox import Videos, transaction
from sources.outbox.videos import VideoExistsError, VideoNotFoundError
from sources.outbox.writer import CommandConflictError
from tests.support.waiting import until

VIDEO, UPLOADER = UUID(int=11), UUID(int=12)


async def events(db: Connection) -> list[Event]:
    found = await db.fetch("SELECT payload, headers, aggregate_id::text FROM catalog.outbox_events ORDER BY seq")
    return [decode(row["payload"], json.loads(row["headers"]), row["aggregate_id"].encode()) for row in found]


async def test_each_change_of_state_writes_its_event_and_gives_back_a_token(db: Connection) -> None:  # RO-34, 37, 38
    videos = Videos(db)
    created = await videos.create(VIDEO, UPLOADER, "one", description="d", headers={"correlation_id": "c-1"})
    updated = await videos.update(VIDEO, {"title": "two", "description": "d", "tags": ["a"]})
    deleted = await videos.delete(VIDEO, reason="asked for")
    assert [t.version for t in (created, updated, deleted)] == [1, 2, 3]
    one, two, three = await events(db)
    assert [e.event_type for e in (one, two, three)] == ["video.created", "video.updated", "video.deleted"]
    assert [UUID(e.event_id) for e in (one, two, three)] == [created.event_id, updated.event_id, deleted.event_id]
    assert one.occurred_at == created.occurred_at
    assert two.payload == {"title": "two", "tags": ["a"]}  # only what changed (RO-27)
    assert three.payload["reason"] == "asked for"
    headers = json.loads(await db.fetchval("SELECT headers FROM catalog.outbox_events ORDER BY seq LIMIT 1"))
    assert headers["correlation_id"] == "c-1"
    assert headers["version"] == "1"


async def test_absent_null_and_empty_are_three_things(db: Connection) -> None:  # T47
    videos = Videos(db)
    await videos.create(VIDEO, UPLOADER, "one", description="text")
    await videos.update(VIDEO, {"tags": ["a"], "summary": "s"})
    await videos.update(VIDEO, {"description": None, "tags": [], "summary": ""})
    assert (await events(db))[-1].payload == {"description": None, "tags": [], "summary": ""}
    await videos.update(VIDEO, {"published_at": datetime(2026, 1, 2, tzinfo=UTC)})
    assert (await events(db))[-1].payload == {"published_at": "2026-01-02T00:00:00Z"}


async def test_nothing_changed_is_no_event(db: Connection) -> None:
    videos = Videos(db)
    await videos.create(VIDEO, UPLOADER, "one")
    token = await videos.update(VIDEO, {"title": "one"})
    assert (token.event_id, token.version) == (None, 1)
    assert len(await events(db)) == 1


async def test_of_two_overlapping_transactions_the_later_commit_has_the_higher_version(
    db: Connection, db2: Connection
) -> None:  # T48
    await Videos(db).create(VIDEO, UPLOADER, "one")
    async with db2.transaction():
        await db2.fetchval("SELECT now()")  # began first
        async with db.transaction():
            first = await Videos(db).update(VIDEO, {"title": "two"})
            waiting = asyncio.create_task(Videos(db2).update(VIDEO, {"title": "three"}))
            await until(
                lambda: db.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"),
                20, "the second one to wait for the row",
            )  # fmt: skip
        second = await waiting
    assert (first.version, second.version) == (2, 3)
    assert second.occurred_at > first.occurred_at  # taken under the lock, not at the transaction's start
    assert await db.fetchval("SELECT title FROM catalog.videos") == "three"
    assert [e.version for e in await events(db)] == [1, 2, 3]


async def test_an_error_after_the_event_takes_both_rows_back(db: Connection) -> None:  # RO-34
    async def create() -> None:
        async with transaction(db):
            await Videos(db).create(VIDEO, UPLOADER, "one")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await create()
    assert await db.fetchval("SELECT count(*) FROM catalog.videos") == 0
    assert await events(db) == []


async def test_a_command_that_is_sent_again_gives_back_its_first_answer(db: Connection) -> None:  # RO-37
    videos, ids = Videos(db), [uuid4() for _ in range(3)]
    first = [
        await videos.create(VIDEO, UPLOADER, "one", command_id=ids[0]),
        await videos.update(VIDEO, {"title": "two"}, command_id=ids[1]),
        await videos.delete(VIDEO, command_id=ids[2]),
    ]
    again = [
        await videos.update(VIDEO, {"title": "two"}, command_id=ids[1]),
        await videos.delete(VIDEO, command_id=ids[2]),
    ]
    assert again == first[1:]
    with pytest.raises(CommandConflictError, match=r"was used for video\.updated"):
        await videos.delete(VIDEO, command_id=ids[1])
    assert len(await events(db)) == 3
    other = uuid4()
    await videos.create(other, UPLOADER, "x", command_id=(command := uuid4()))
    assert (await videos.create(other, UPLOADER, "x", command_id=command)).version == 1


async def test_the_same_command_from_two_sessions_at_once_is_done_once(db: Connection, db2: Connection) -> None:
    command = uuid4()
    await Videos(db).create(VIDEO, UPLOADER, "one")
    tokens = await asyncio.gather(*(Videos(c).update(VIDEO, {"title": "two"}, command_id=command) for c in (db, db2)))
    assert tokens[0] == tokens[1]
    created = uuid4()
    answers = await asyncio.gather(
        *(Videos(c).create(UUID(int=70), UPLOADER, "x", command_id=created) for c in (db, db2))
    )
    assert answers[0] == answers[1]
    assert len(await events(db)) == 3


async def test_what_does_not_fit_the_topic_is_refused_before_the_commit(db: Connection) -> None:  # RO-97
    videos = Videos(db, max_bytes=2000)
    await videos.create(VIDEO, UPLOADER, "one")
    with pytest.raises(PayloadTooLargeError, match=r"video\.updated .* takes .* 2,000 are allowed.*claim"):
        await videos.update(VIDEO, {"summary": "x" * 3000})
    assert await db.fetchval("SELECT version FROM catalog.videos") == 1

    async def order() -> None:
        async with transaction(db, max_bytes=2000) as tx:
            event = Event(event_id=str(uuid4()), event_type="order.paid", aggregate_type="order",
                          aggregate_id=str(uuid4()), version=1, occurred_at=datetime.now(UTC))  # fmt: skip
            await tx.emit_encoded(event, bytes(30_000), {})

    with pytest.raises(PayloadTooLargeError, match="with its headers"):
        await order()
    assert len(await events(db)) == 1


async def test_wrong_commands_say_what_is_wrong_and_leave_nothing(db: Connection) -> None:
    videos = Videos(db)
    with pytest.raises(VideoNotFoundError, match=str(VIDEO)):
        await videos.update(VIDEO, {"title": "x"})
    with pytest.raises(VideoNotFoundError):
        await videos.delete(VIDEO)
    await videos.create(VIDEO, UPLOADER, "one")
    with pytest.raises(VideoExistsError):
        await videos.create(VIDEO, UPLOADER, "again")
    with pytest.raises(ValueError, match="no field 'titel'"):
        await videos.update(VIDEO, {"titel": "x"})
    with pytest.raises((InvalidEventError, asyncpg.PostgresError)):
        await videos.update(VIDEO, {"status": "nonsense"})
    assert len(await events(db)) == 1


async def test_an_event_that_follows_from_another_is_written_once(db: Connection) -> None:  # RO-92
    source = uuid4()

    async def follow(version: int) -> None:
        async with transaction(db) as tx:
            event = Event(event_id=str(uuid4()), event_type="video.deleted", aggregate_id=str(VIDEO),
                          version=version, occurred_at=datetime.now(UTC))  # fmt: skip
            await tx.emit(event, source_event_id=source)

    await follow(1)
    with pytest.raises(asyncpg.UniqueViolationError, match="outbox_events_source"):
        await follow(2)
