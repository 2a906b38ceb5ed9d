"""The polling relay between a real Postgres and a real Kafka. What arrived is read by a consumer of its own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from millstream import metrics
from millstream.postgres import Connection
from sources.outbox import PollingRelay
from sources.outbox.message import UnfitEventError, message_of
from tests.conftest import MakeTopic
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


@asynccontextmanager
async def running(relay: PollingRelay) -> AsyncIterator[PollingRelay]:
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        relay.stop()
        await task


async def all_published(db: Connection) -> None:
    async def look() -> bool:
        return await unpublished(db) == 0

    await until(look, PATIENCE, "everything to be published")


async def test_every_event_arrives_once_in_order_with_key_headers_and_payload(
    db: Connection, postgres: str, kafka: str, make_topic: MakeTopic
) -> None:  # RO-47, RO-71
    topic = make_topic("events", 3)
    event = await insert(db, 50, 1, b"\x00payload\xff")
    total = 1 + await insert_many(db, 20, 60)
    relay = PollingRelay(make_settings(kafka, topic), postgres)
    assert await relay.drain() == total
    found = await read_async(kafka, topic)
    assert len(found) == len({r.event_id for r in found}) == total
    assert_in_order(found)
    seen = first_seen(found)
    assert seen.pop(str(AGGREGATES[50])) == [1]
    assert list(seen.values()) == [list(range(1, 61))] * 20
    (one,) = (r for r in found if r.event_id == str(event))
    assert (one.key, one.value) == (str(AGGREGATES[50]), b"\x00payload\xff")
    assert one.headers == {
        "event_id": str(event), "event_type": "video.updated", "aggregate_id": one.key, "aggregate_type": "video",
        "version": "1", "occurred_at": "2026-11-23T08:00:00Z", "schema_version": "v1",
    }  # fmt: skip
    filled = next(r for r in found if r.event_id != str(event))  # the writer gave none: they come from the columns
    assert set(filled.headers) == set(one.headers)  # RO-87
    assert filled.value.decode() == f"{int(filled.key[-12:])}:{filled.version}"
    assert await relay.drain() == total  # nothing more


async def test_it_wakes_up_when_an_event_is_committed(
    db: Connection, postgres: str, kafka: str, make_topic: MakeTopic
) -> None:  # RO-91: the poll alone would take minutes
    settings = make_settings(kafka, make_topic("events"), outbox_poll_min=300.0, outbox_poll_max=300.0)
    relay = PollingRelay(settings, postgres)
    async with running(relay):
        await until(lambda: relay._quiet, PATIENCE, "the relay to be idle")
        await insert(db, 0, 1)
        await all_published(db)
        await insert(db, 0, 2)
        await all_published(db)


async def test_without_a_notification_it_polls(
    db: Connection, postgres: str, kafka: str, make_topic: MakeTopic
) -> None:  # RO-91
    await db.execute("DROP TRIGGER outbox_events_notify ON catalog.outbox_events")
    relay = PollingRelay(make_settings(kafka, make_topic("events")), postgres)
    async with running(relay):
        await until(lambda: relay._quiet, PATIENCE, "the relay to be idle")
        await insert(db, 0, 1)
        await all_published(db)


async def test_an_idle_relay_asks_less_and_less_and_at_random(
    postgres: str, kafka: str, make_topic: MakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:  # RO-91
    bounds: list[float] = []
    relay = PollingRelay(
        make_settings(kafka, make_topic("events"), outbox_poll_min=0.25, outbox_poll_max=30.0), postgres
    )

    def uniform(low: float, high: float) -> float:
        bounds.append(high)
        assert low == 0
        if len(bounds) == 40:
            relay.stop()
        return 0.0

    monkeypatch.setattr("sources.outbox.relay.random.uniform", uniform)
    await relay.run()
    assert bounds[:8] == [0.25, 0.5, 1, 2, 4, 8, 16, 30]
    assert set(bounds[8:]) == {30}


async def test_a_record_that_kafka_refuses_fails_alone_and_holds_back_only_its_aggregate(
    db: Connection, postgres: str, kafka: str, make_topic: MakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:  # T50, T54
    topic = make_topic("events", 2, {"max.message.bytes": "20000"})
    for version in range(1, 6):
        for aggregate in range(4):
            big = aggregate == 2 and version == 2
            await insert(db, aggregate, version, random.Random(1).randbytes(40_000 if big else 10))
    relay = PollingRelay(make_settings(kafka, topic, outbox_max_attempts=3), postgres)
    monkeypatch.setattr(relay._publisher, "unfit", lambda _message: None)  # what only the broker knows
    async with running(relay):

        async def parked() -> bool:
            return bool(await db.fetchval("SELECT count(*) FROM catalog.outbox_events WHERE parked_at IS NOT NULL"))

        await until(parked, PATIENCE, "the event to be parked")

        async def rest() -> bool:
            return await unpublished(db) == 4

        await until(rest, PATIENCE, "everything else to be published")
    found = await read_async(kafka, topic)
    assert first_seen(found) == {str(AGGREGATES[n]): ([1] if n == 2 else [1, 2, 3, 4, 5]) for n in range(4)}
    assert_in_order(found)
    (bad,) = [row for row in (await rows(db, "event_id")).values() if row["parked_at"] is not None]
    assert bad["delivery_attempts"] == 3
    assert "MSG_SIZE_TOO_LARGE" in bad["last_error"]
    assert bad["aggregate_id"] == AGGREGATES[2]
    held = [row for row in (await rows(db, "event_id")).values() if row["published_at"] is None and row != bad]
    assert [row["delivery_attempts"] for row in held] == [0, 0, 0]


async def test_what_can_never_fit_is_parked_at_once_and_goes_when_the_topic_takes_it(
    db: Connection, postgres: str, kafka: str, make_topic: MakeTopic
) -> None:  # RO-97, T60
    topic = make_topic("events", 1, {"max.message.bytes": "2000"})
    await insert(db, 0, 1, bytes(3000))
    await insert(db, 0, 2)
    await insert(db, 1, 1)
    await db.execute(
        "UPDATE catalog.outbox_events SET headers = '{\"version\": 1}' WHERE aggregate_id = $1", AGGREGATES[1]
    )
    relay = PollingRelay(make_settings(kafka, topic), postgres)
    assert await relay.drain() == 0
    await relay._look(db)
    told = {(row["aggregate_id"], row["version"]): row["last_error"] for row in (await rows(db, "event_id")).values()}
    assert "takes 2,000: raise its max.message.bytes" in told[AGGREGATES[0], 1]
    assert "headers must be an object of texts" in told[AGGREGATES[1], 1]
    assert told[AGGREGATES[0], 2] is None
    assert (metrics.OUTBOX_PARKED._value.get(), metrics.OUTBOX_HELD._value.get()) == (2, 1)
    await db.execute(
        "UPDATE catalog.outbox_events SET payload = 'y', headers = '{}', parked_at = NULL, available_at = now()"
    )
    assert await relay.drain() == 3


def test_headers_are_texts_and_the_writers_own_win() -> None:  # T60
    row: dict[str, Any] = {"aggregate_type": "video", "key": "k", "payload": b"p", "event_id": "e", "event_type": "t",
                           "version": 3}  # fmt: skip
    from datetime import UTC, datetime

    row["occurred_at"] = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    made = message_of(row | {"headers": '{"schema_version": "v1.2", "trace_id": "é"}'}, {"video": "t"})
    headers = dict(made.headers)
    assert headers["schema_version"] == b"v1.2"
    assert headers["trace_id"] == "é".encode()
    assert headers["version"] == b"3"
    assert headers["occurred_at"] == b"2026-01-02T03:04:05Z"
    for wrong in ('{"version": 1}', '{"a": null}', '{"a": ["b"]}', "[]", '"x"'):
        with pytest.raises(UnfitEventError):
            message_of(row | {"headers": wrong}, {"video": "t"})


async def test_relays_side_by_side_share_the_work_and_keep_the_order(
    db: Connection, postgres: str, kafka: str, make_topic: MakeTopic
) -> None:  # T50
    topic = make_topic("events", 3)
    settings = make_settings(kafka, topic, outbox_batch_size=20)
    async with running(PollingRelay(settings, postgres)) as one, running(PollingRelay(settings, postgres)) as two:
        total = 0
        for _ in range(5):
            total += await insert_many(db, 5, 10, total // 5)
        await all_published(db)
    assert one.published + two.published == total
    found = await read_async(kafka, topic)
    assert len(found) == total
    assert_in_order(found)


async def test_a_relay_that_was_away_for_longer_than_its_lease_notices(
    db: Connection, postgres: str, kafka: str, make_topic: MakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:  # T52: slow broker, two relays; duplicates allowed, loss not, published_at written once
    topic = make_topic("events")
    for version in range(1, 6):
        await insert(db, 0, version)
    settings = make_settings(kafka, topic)
    slow, quick = PollingRelay(settings, postgres), PollingRelay(settings, postgres)
    publish, go_on = slow._publisher.publish, asyncio.Event()
    loop = asyncio.get_running_loop()

    def late(*args: Any) -> Any:
        done = publish(*args)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        return done

    monkeypatch.setattr(slow._publisher, "publish", late)
    lost = metrics.OUTBOX_LEASES_LOST._value.get()
    draining = asyncio.create_task(slow.drain())
    await until(lambda: slow._debt, PATIENCE, "the slow one to have claimed")
    assert await quick.drain() == 0
    await db.execute("UPDATE catalog.outbox_events SET locked_at = locked_at - interval '120 s'")  # the database's time
    assert await quick.drain() == 5
    before = await rows(db)
    go_on.set()
    await draining
    assert await rows(db) == before
    assert metrics.OUTBOX_LEASES_LOST._value.get() == lost + 5
    found = await read_async(kafka, topic)
    assert first_seen(found) == {str(AGGREGATES[0]): [1, 2, 3, 4, 5]}
    assert len(found) == 10


async def test_a_long_transaction_holds_up_nobody_else(
    db: Connection, db2: Connection, postgres: str, kafka: str, make_topic: MakeTopic
) -> None:  # RO-74
    topic = make_topic("events")
    long = db2.transaction()
    await long.start()
    await insert(db2, 0, 1)
    async with running(PollingRelay(make_settings(kafka, topic), postgres)) as relay:
        for version in range(1, 4):
            await insert(db, 1, version)
        await all_published(db)
        assert relay.published == 3
        await long.commit()
        await all_published(db)
    assert set(first_seen(await read_async(kafka, topic))) == {str(AGGREGATES[0]), str(AGGREGATES[1])}


async def test_topics_are_made_with_room_for_our_largest_message(
    db: Connection, postgres: str, kafka: str, unique: Callable[[str], str], admin: AdminClient
) -> None:
    topic = unique("made")
    await insert(db, 0, 1, bytes(3_000_000))
    try:
        assert await PollingRelay(make_settings(kafka, topic, outbox_topic_partitions=2), postgres).drain() == 1
        assert len(admin.list_topics(topic, 10).topics[topic].partitions) == 2
    finally:
        for deleted in admin.delete_topics([topic]).values():
            deleted.exception(30)
