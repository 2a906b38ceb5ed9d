"""Drills with real processes: relays and writers are killed and paused at their failpoints, servers go and come back.

What must hold is read from the topic by a consumer of its own: no event is missing, the first sight of each aggregate's
versions is in order, and only the polling relay may repeat an event (RO-72 to RO-75, RO-96).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self
from uuid import UUID

import pytest

from millstream.broker import EmbeddedBroker
from millstream.errors import ConfigError
from millstream.postgres import Connection, EmbeddedPostgres, connect
from sources.outbox import ReplicationRelay
from tests.chaos.failpoints import declared
from tests.chaos.fleet import Fleet, Worker
from tests.conftest import MakeTopic, Unique
from tests.integration.outbox.world import (
    Read,
    assert_in_order,
    first_seen,
    insert_many,
    make_settings,
    read_async,
    unpublished,
)
from tests.support.postgres import new_database
from tests.support.waiting import until

pytestmark = [pytest.mark.chaos]
PATIENCE = 120
WALS = ("outbox.wal.received", "outbox.wal.produced", "outbox.wal.committed", "outbox.wal.marked")
POLLS = ("outbox.claimed", "outbox.published", "outbox.marked")
WRITERS = ("outbox.written", "outbox.committed")


class Drill:
    """A topic, a database, and relays as processes."""

    def __init__(self, kafka: str, topic: str, url: str, home: Path, name: str) -> None:
        self.kafka, self.topic, self.url = kafka, topic, url
        self.name = name.replace("-", "_")
        settings = {
            "BOOTSTRAP_SERVERS": kafka, "POSTGRES_URL": url, "APP_ID": name, "REQUEST_TIMEOUT": 10,
            "OUTBOX_TOPICS": f"video={topic}", "OUTBOX_SLOT": self.name, "OUTBOX_PUBLICATION": self.name,
            "OUTBOX_LEASE": 4, "OUTBOX_PUBLISH_TIMEOUT": 2, "OUTBOX_POLL_MAX": 1, "OUTBOX_BACKOFF": 0.1,
            "OUTBOX_BACKOFF_MAX": 1, "OUTBOX_BATCH_SIZE": 50,
        }  # fmt: skip
        self.fleet = Fleet(home, "streams", 1, "short", **settings)
        self.written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.fleet.workers.values():
            print(f"--- {worker}\n{worker.tail()}")  # shown with a failure
        self.fleet.kill()

    def relay(self, via: str, slot: str = "r", failpoints: str = "", **settings: object) -> Worker:
        options = ["--create-slot"] if via == "replication" else []
        arguments = ["outbox", "relay", "--via", via, *options]
        worker = self.fleet.run(slot, f"{__package__}.program", arguments, failpoints, **settings)
        self.fleet.workers[f"{slot}-{self.fleet.lives}"] = worker
        return worker

    async def write(self, db: Connection, versions: int = 10) -> None:
        """`versions` more of each of ten aggregates."""
        self.written += await insert_many(db, 10, versions, self.written // 10)

    async def finished(self, db: Connection) -> list[Read]:
        async def look() -> bool:
            return await unpublished(db) == 0

        await until(look, PATIENCE, "everything to be published")
        found = await read_async(self.kafka, self.topic)
        assert_in_order(found)
        assert sum(map(len, first_seen(found).values())) == self.written  # none is missing
        return found


@pytest.fixture
def drill(kafka: str, make_topic: MakeTopic, postgres: str, tmp_path: Path, unique: Unique) -> Iterator[Drill]:
    made = Drill(kafka, make_topic("events", 3), postgres, tmp_path / "fleet", unique("drill"))
    with made:
        yield made
    asyncio.run(_drop_slot(made))


async def _drop_slot(drill: Drill) -> None:
    async with connect(drill.url) as db:

        async def gone() -> bool:
            found = await db.fetch("SELECT active FROM pg_replication_slots WHERE slot_name = $1", drill.name)
            if found and not found[0]["active"]:
                await db.execute("SELECT pg_drop_replication_slot($1)", drill.name)
            return not found

        await until(gone, PATIENCE, "the slot to be free")


def test_every_failpoint_of_the_outbox_has_its_drill() -> None:
    assert sorted(n for n in declared() if n.startswith("outbox.")) == sorted(WALS + POLLS + WRITERS)


async def test_a_polling_relay_that_is_killed_anywhere_loses_nothing(drill: Drill, db: Connection) -> None:
    """RO-72, RO-96; T53: between publish and mark, events are repeated under their ids."""
    for name in POLLS:
        await drill.write(db)
        worker = drill.relay("polling", failpoints=f"{name}=kill")
        assert await asyncio.to_thread(worker.wait) == -signal.SIGKILL
        assert drill.fleet.hits()[name] == 1
    await drill.write(db)
    last = drill.relay("polling")
    found = await drill.finished(db)
    assert drill.written < len(found) <= drill.written + 50  # the batch that was published and not marked
    assert len({r.event_id for r in found}) == drill.written
    last.signal(signal.SIGTERM)
    assert await asyncio.to_thread(last.wait) == 0


async def test_a_replication_relay_that_is_killed_anywhere_loses_and_repeats_nothing(
    drill: Drill, db: Connection
) -> None:
    for name in WALS:
        worker = drill.relay("replication", failpoints=f"{name}=kill")
        await asyncio.to_thread(worker.wait_log, "outbox_replication_started")  # else they are from before the slot
        await drill.write(db)
        assert await asyncio.to_thread(worker.wait) == -signal.SIGKILL
        assert drill.fleet.hits()[name] == 1
    await drill.write(db)
    last = drill.relay("replication")
    assert len(await drill.finished(db)) == drill.written
    last.signal(signal.SIGTERM)
    assert await asyncio.to_thread(last.wait) == 0


async def test_a_writer_that_is_killed_leaves_both_rows_or_none(drill: Drill, db: Connection) -> None:
    """RO-34, RO-96: after the commit and before the publication, the event is on record, and goes out later."""
    videos = {name: UUID(int=1000 + n) for n, name in enumerate(WRITERS)}
    for name, video in videos.items():
        worker = drill.fleet.run("w", f"{__package__}.one_writer", [drill.url, str(video)], f"{name}=kill")
        assert await asyncio.to_thread(worker.wait) == -signal.SIGKILL
    assert [row["video_id"] for row in await db.fetch("SELECT video_id FROM catalog.videos")] == [
        videos["outbox.committed"]
    ]
    drill.written = 1
    drill.relay("polling")
    (event,) = await drill.finished(db)
    assert event.key == str(videos["outbox.committed"])
    assert event.headers["event_type"] == "video.created"


async def test_a_relay_that_was_paused_past_its_lease_does_no_harm(drill: Drill, db: Connection) -> None:
    """T52: with its claim in hand it finds that it may not publish any more; after the publication, it notices."""
    for name in ("outbox.claimed", "outbox.published"):
        await drill.write(db, 2)
        paused = drill.relay("polling", "a", f"{name}=stop1")
        await asyncio.to_thread(paused.wait_stopped)
        other = drill.relay("polling", "b")
        found = await drill.finished(db)
        before = await db.fetch("SELECT * FROM catalog.outbox_events ORDER BY seq")
        paused.signal(signal.SIGCONT)
        await asyncio.to_thread(paused.wait_log, "outbox_leases_lost")
        assert await db.fetch("SELECT * FROM catalog.outbox_events ORDER BY seq") == before
        for worker in (paused, other):
            worker.signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.wait) == 0
        repeated = len(await drill.finished(db)) - drill.written
        assert repeated == (0 if name == "outbox.claimed" else 20), (name, len(found))


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server that may be stopped, and would leave a slot to a relay that is silent for ever."""
    directory = tmp_path_factory.mktemp("pg")
    with EmbeddedPostgres(
        directory, fsync="off", wal_sender_timeout="0", max_slot_wal_keep_size="32MB", min_wal_size="32MB"
    ) as server:
        yield server


@pytest.fixture
def own_drill(
    kafka: str, make_topic: MakeTopic, own_postgres: EmbeddedPostgres, tmp_path: Path, unique: Unique
) -> Iterator[Drill]:
    url = new_database(own_postgres.url)
    made = Drill(kafka, make_topic("events", 3), url, tmp_path / "fleet", unique("drill"))
    with made:
        yield made
    asyncio.run(_drop_slot(made))


async def test_a_replication_relay_that_was_paused_in_its_transaction_is_fenced(own_drill: Drill) -> None:
    """After the lease its slot is free, the successor fences its producer: its records are never seen (RO-73)."""
    drill = own_drill
    async with connect(drill.url) as db:
        paused = drill.relay("replication", "a", "outbox.wal.produced=stop1")
        await asyncio.to_thread(paused.wait_log, "outbox_replication_started")
        await drill.write(db)
        await asyncio.to_thread(paused.wait_stopped)
        other = drill.relay("replication", "b")
        await drill.finished(db)
        paused.signal(signal.SIGCONT)
        await asyncio.to_thread(paused.wait_log, "_away")
        await drill.write(db)
        assert len(await drill.finished(db)) == drill.written
        for worker in (paused, other):
            worker.signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.wait) == 0


@pytest.mark.parametrize("via", ["polling", "replication"])
async def test_relays_wait_until_postgres_is_back(own_drill: Drill, own_postgres: EmbeddedPostgres, via: str) -> None:
    drill = own_drill
    relay = drill.relay(via)
    async with connect(drill.url) as db:
        await drill.write(db)
        await drill.finished(db)
        await drill.write(db, 100)
    await asyncio.to_thread(own_postgres.kill)  # in the middle of it
    await asyncio.to_thread(relay.wait_log, "outbox_postgres_away")
    await asyncio.to_thread(own_postgres.start)
    async with connect(drill.url) as db:
        await drill.write(db)
        found = await drill.finished(db)
    assert len({r.event_id for r in found}) == drill.written
    if via == "replication":
        assert len(found) == drill.written
    relay.signal(signal.SIGTERM)
    assert await asyncio.to_thread(relay.wait) == 0


async def test_a_slot_whose_wal_was_removed_is_told_and_loses_nothing(
    own_drill: Drill, own_postgres: EmbeddedPostgres
) -> None:
    drill = own_drill
    settings = make_settings(
        drill.kafka, drill.topic, app_id=drill.name, outbox_slot=drill.name, outbox_publication=drill.name
    )
    async with connect(drill.url) as db:
        await ReplicationRelay(settings, drill.url).create()
        await drill.write(db)
        for _ in range(4):
            await db.execute("CREATE TABLE IF NOT EXISTS filler (n text)")
            await db.execute("INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 20000)")
            await db.execute("SELECT pg_switch_wal()")
            await db.execute("CHECKPOINT")
        with pytest.raises(ConfigError, match=r"is lost: .*max_slot_wal_keep_size.*pg_drop_replication_slot"):
            await ReplicationRelay(settings, drill.url).run()
        await db.execute("SELECT pg_drop_replication_slot($1)", drill.name)
        drill.relay("replication")
        await drill.write(db)
        assert len(await drill.finished(db)) == drill.written


@pytest.fixture(scope="module")
def own_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A broker that may be paused."""
    with EmbeddedBroker(tmp_path_factory.mktemp("own-kafka")) as broker:
        yield broker


async def test_while_kafka_acknowledges_nothing_events_wait_and_none_is_lost(
    own_kafka: EmbeddedBroker, postgres_server: str, tmp_path: Path, unique: Unique
) -> None:
    """RO-73, RO-90: the outcome is unknown, so it is a retry, by either relay. An outage parks nothing."""
    signs = {"polling": "outbox_publish_failed", "replication": "outbox_kafka_away"}
    async with AsyncExitStack() as stack:
        sides: list[tuple[str, Drill, Connection, Worker]] = []
        for via in signs:
            url = await asyncio.to_thread(new_database, postgres_server)
            name = unique("drill")
            drill = stack.enter_context(Drill(own_kafka.bootstrap_servers, f"{name}-events", url, tmp_path / via, name))
            db = await stack.enter_async_context(connect(url))
            sides.append((via, drill, db, drill.relay(via, TRANSACTION_TIMEOUT=3, OUTBOX_MAX_ATTEMPTS=1)))
        for _, drill, db, _ in sides:
            await drill.write(db)
            await drill.finished(db)
        assert own_kafka.pid
        os.kill(own_kafka.pid, signal.SIGSTOP)
        try:
            for _, drill, db, _ in sides:
                await drill.write(db)
            for via, _, _, relay in sides:
                await asyncio.to_thread(relay.wait_log, signs[via])
            for _, drill, db, _ in sides:
                await drill.write(db)
        finally:
            os.kill(own_kafka.pid, signal.SIGCONT)
        for via, drill, db, _ in sides:
            found = await drill.finished(db)
            assert len({r.event_id for r in found}) == drill.written
            if via == "replication":
                assert len(found) == drill.written
            assert await db.fetchval("SELECT count(*) FROM catalog.outbox_events WHERE parked_at IS NOT NULL") == 0
    for _, drill, _, _ in sides:
        await _drop_slot(drill)
