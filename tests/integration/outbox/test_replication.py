"""The relay via replication: a real slot, a real Kafka, read by a consumer of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from millstream.errors import ConfigError
from millstream.postgres import Connection, connect
from millstream.settings import Settings
from sources.outbox import ReplicationRelay, replication
from sources.outbox.slot import slot_stats
from sources.transactional import TransactionalSource
from tests.conftest import MakeTopic, Unique
from tests.integration.outbox.world import (
    AGGREGATES,
    assert_in_order,
    first_seen,
    insert,
    insert_many,
    make_settings,
    read_async,
    rows,
    unpublished,
)
from tests.support.waiting import until

PATIENCE = 60


@pytest.fixture
async def settings(kafka: str, make_topic: MakeTopic, unique: Unique, db: Connection) -> AsyncIterator[Settings]:
    """With a slot name of the test's own; the slot goes after the test."""
    slot = unique("slot").replace("-", "_")
    yield make_settings(
        kafka, make_topic("events", 3), app_id=unique("app"), outbox_via="replication", outbox_slot=slot,
        outbox_publication=slot,
    )  # fmt: skip

    async def gone() -> bool:
        status = await db.fetch("SELECT active FROM pg_replication_slots WHERE slot_name = $1", slot)
        if status and not status[0]["active"]:
            await db.execute("SELECT pg_drop_replication_slot($1)", slot)
        return not status

    await until(gone, PATIENCE, "the slot to be free")


def topic_of(settings: Settings) -> str:
    return settings.outbox_topics["video"]


@asynccontextmanager
async def running(settings: Settings, url: str, *, create: bool = True) -> AsyncIterator[ReplicationRelay]:
    relay = ReplicationRelay(settings, url)
    if create:
        await relay.create()
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        relay.stop()
        await task


async def all_published(db: Connection, left: int = 0) -> None:
    async def look() -> bool:
        return await unpublished(db) == left

    await until(look, PATIENCE, f"all but {left} to be published")


async def test_every_event_arrives_once_in_the_order_of_commits(
    db: Connection, postgres: str, settings: Settings
) -> None:
    async with running(settings, postgres) as relay:
        event = await insert(db, 50, 1, b"\x00payload\xff")
        total = 1 + await insert_many(db, 20, 60)
        await all_published(db)
        assert relay.published == total
        assert relay._leftovers.published == 0  # nothing was polled
    found = await read_async(settings.bootstrap_servers or "", topic_of(settings))
    assert len(found) == len({r.event_id for r in found}) == total
    assert_in_order(found)
    (one,) = (r for r in found if r.event_id == str(event))
    assert (one.key, one.value) == (str(AGGREGATES[50]), b"\x00payload\xff")
    assert one.headers == {
        "event_id": str(event), "event_type": "video.updated", "aggregate_id": one.key, "aggregate_type": "video",
        "version": "1", "occurred_at": "2026-11-23T08:00:00Z", "schema_version": "v1",
    }  # fmt: skip
    assert all(r.headers.keys() == one.headers.keys() for r in found)


async def test_rolled_back_rows_never_come_and_late_commits_do(
    db: Connection, db2: Connection, postgres: str, settings: Settings
) -> None:  # T55, RO-74
    async with running(settings, postgres):
        undone, late = db.transaction(), db2.transaction()
        await late.start()
        await insert(db2, 1, 1)
        await undone.start()
        await insert(db, 2, 1)
        await undone.rollback()
        await insert(db, 3, 1)
        await all_published(db)
        await late.commit()
        await all_published(db)
    found = await read_async(settings.bootstrap_servers or "", topic_of(settings))
    assert sorted(r.key for r in found) == sorted(str(AGGREGATES[n]) for n in (1, 3))


async def test_a_transaction_open_where_the_relay_begins_is_left_to_the_stream(db: Connection, db2: Connection) -> None:
    late = db2.transaction()
    await late.start()
    await insert(db2, 1, 1)
    await insert(db, 3, 1)
    horizon = await db.fetchrow(replication.SQL["horizon"], ["video"])
    await late.commit()
    assert horizon is not None
    assert await db.execute(replication.SQL["orphans"], horizon["seqs"]) == "UPDATE 1"
    found = await db.fetch("SELECT aggregate_id::text FROM catalog.outbox_events WHERE last_error IS NOT NULL")
    assert [row[0] for row in found] == [str(AGGREGATES[3])]


async def test_rows_from_before_the_slot_are_sent_too_and_first(
    db: Connection, postgres: str, settings: Settings
) -> None:
    await insert_many(db, 3, 4)
    async with running(settings, postgres):
        await insert_many(db, 3, 4, after=4)
        await all_published(db)
    found = await read_async(settings.bootstrap_servers or "", topic_of(settings))
    assert len(found) == 24
    assert_in_order(found)


async def test_the_slot_follows_so_that_the_server_keeps_no_wal(
    db: Connection, postgres: str, settings: Settings
) -> None:
    async with running(settings, postgres):
        await insert_many(db, 3, 4)
        await all_published(db)
        await db.execute("CREATE TABLE other AS SELECT generate_series(1, 50000) n")  # WAL that is not ours
        end = await db.fetchval("SELECT pg_current_wal_lsn()::text")

        async def followed() -> bool:
            sql = "SELECT confirmed_flush_lsn >= $2::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $1"
            return bool(await db.fetchval(sql, settings.outbox_slot, end))

        await until(followed, PATIENCE, "the slot to pass what is not ours")
        found = await slot_stats(db, settings.outbox_slot)
        assert found is not None
        assert found["active"]
        assert found["wal_status"] == "reserved"


async def test_a_large_transaction_goes_in_parts(db: Connection, postgres: str, settings: Settings) -> None:
    async with running(settings.model_copy(update={"outbox_batch_size": 70}), postgres):
        await insert_many(db, 10, 100)
        await all_published(db)
    found = await read_async(settings.bootstrap_servers or "", topic_of(settings))
    assert len(found) == 1000
    assert_in_order(found)


async def test_an_event_that_does_not_fit_is_parked_and_the_stream_goes_on(
    db: Connection, postgres: str, settings: Settings
) -> None:  # T54, T50, RO-82
    limited = settings.model_copy(update={"max_message_bytes": 100_000})
    async with running(limited, postgres):
        await insert(db, 0, 1, bytes(200_000))
        await insert(db, 0, 2)
        await insert(db, 1, 1)
        await all_published(db, 2)
        await insert(db, 0, 3)
        await insert(db, 1, 2)
        await all_published(db, 3)
        told = {row["version"]: row for row in (await rows(db, "seq")).values() if row["published_at"] is None}
        assert "takes 100,000" in told[1]["last_error"]
        assert told[1]["parked_at"] is not None
        assert told[2]["last_error"] == told[3]["last_error"] == "waits for an earlier event of its aggregate"
        await db.execute("UPDATE catalog.outbox_events SET payload = 'small' WHERE version = 1")
        from sources.outbox import OutboxStore

        assert await OutboxStore(limited).requeue(db, parked=True) == (1, [])
        await all_published(db)
        await insert(db, 0, 4)
        await all_published(db)
    found = await read_async(settings.bootstrap_servers or "", topic_of(settings))
    assert_in_order(found)
    assert first_seen(found)[str(AGGREGATES[0])] == [1, 2, 3, 4]
    assert len(found) == 6


async def test_an_event_that_is_not_due_waits(db: Connection, postgres: str, settings: Settings) -> None:
    async with running(settings, postgres):
        due = datetime.now(UTC) + timedelta(seconds=3)
        await db.execute(
            "INSERT INTO catalog.outbox_events (aggregate_type, aggregate_id, event_type, version, payload, "
            "available_at) VALUES ('video', $1, 't', 1, '', $2)", AGGREGATES[0], due,
        )  # fmt: skip
        await all_published(db)
    (row,) = (await rows(db)).values()
    assert row["published_at"] >= row["available_at"]


async def test_of_two_relays_one_waits_until_the_other_ends(db: Connection, postgres: str, settings: Settings) -> None:
    async with running(settings, postgres) as first:
        await insert_many(db, 2, 2)
        await all_published(db)
        async with running(settings, postgres) as second:
            await until(lambda: second._failures, PATIENCE, "the second one to find the slot taken")
            await insert_many(db, 2, 2, after=2)
            await all_published(db)
            assert (first._sent, second._sent) == (8, 0)
            first.stop()
            await insert_many(db, 2, 2, after=4)
            await all_published(db)
    found = await read_async(settings.bootstrap_servers or "", topic_of(settings))
    assert len(found) == 12
    assert_in_order(found)


async def test_a_takeover_that_lasts_longer_than_the_server_waits_succeeds_at_once(
    db: Connection, postgres: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the relay was silent while it fenced its predecessor; the server hung up, and so for ever."""
    started = []

    class Slow(TransactionalSource):
        def __init__(self, *arguments: Any) -> None:
            started.append(arguments)
            time.sleep(1.5 * slow.outbox_lease)
            super().__init__(*arguments)

    slow = settings.model_copy(update={"outbox_lease": 2.0})
    monkeypatch.setattr(replication, "TransactionalSource", Slow)
    async with running(slow, postgres):
        await insert_many(db, 3, 4)
        await all_published(db)
    assert len(started) == 1


async def test_each_type_goes_to_its_topic(
    db: Connection, postgres: str, settings: Settings, make_topic: MakeTopic
) -> None:
    topics = {"video": topic_of(settings), "author": make_topic("authors", 2)}
    async with running(settings.model_copy(update={"outbox_topics": topics}), postgres):
        for aggregate, kind in enumerate((*topics, "nobody")):
            await insert(db, aggregate, 1, kind.encode(), kind)
        await all_published(db, 1)
    for kind, topic in topics.items():
        assert [r.value for r in await read_async(settings.bootstrap_servers or "", topic)] == [kind.encode()]


async def test_what_is_missing_is_told_with_the_sql(
    db: Connection, postgres: str, postgres_server: str, settings: Settings
) -> None:
    with pytest.raises(ConfigError, match=r"no publication .*CREATE PUBLICATION \w+ FOR TABLE.*--create-slot"):
        await ReplicationRelay(settings, postgres).run()
    name = settings.outbox_publication
    await db.execute(f"CREATE PUBLICATION {name} FOR TABLE catalog.outbox_events WITH (publish = 'insert')")
    with pytest.raises(ConfigError, match=r"no replication slot .*pg_create_logical_replication_slot.*--create-slot"):
        await ReplicationRelay(settings, postgres).run()
    async with connect(postgres_server) as elsewhere:
        await elsewhere.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", settings.outbox_slot)
        with pytest.raises(ConfigError, match=r"in database 'millstream', not of .*MILLSTREAM_OUTBOX_SLOT"):
            await ReplicationRelay(settings, postgres).create()
        await elsewhere.execute("SELECT pg_drop_replication_slot($1)", settings.outbox_slot)


async def test_a_publication_that_goes_while_the_relay_runs_ends_it_with_the_sql(
    db: Connection, postgres: str, settings: Settings
) -> None:
    relay = ReplicationRelay(settings, postgres)
    await relay.create()
    task = asyncio.create_task(relay.run())
    await insert(db, 0, 1)
    await all_published(db)
    await db.execute(f"DROP PUBLICATION {settings.outbox_publication}")
    await insert(db, 0, 2)
    with pytest.raises(ConfigError, match="CREATE PUBLICATION"):
        await asyncio.wait_for(task, PATIENCE)
