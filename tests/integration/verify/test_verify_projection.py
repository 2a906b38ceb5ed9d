"""`verify projection`: exactly the planted differences are found, and exactly those are repaired."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import Result

from millstream.postgres import Connection, connect
from schemas.events import UPDATED
from sinks.postgres.inbox import prune
from sources.outbox import PollingRelay, Videos
from streams.replay.plan import TopicPlan
from tests.conftest import MakeTopic
from tests.integration.replay.world import PARTITIONS, World
from tests.support.projection import held
from tests.unit.events.events import event, uuid

VIDEOS = 40
PLANTED = str(UUID(int=0xFFFF))


@pytest.fixture
async def db(postgres: str) -> AsyncIterator[Connection]:
    async with connect(postgres) as connection:
        yield connection


@pytest.fixture
async def world(kafka: str, postgres: str, make_topic: MakeTopic, tmp_path: Path, db: Connection) -> World:
    """Videos, their events in the outbox and in the topic, and the projection of them."""
    made = World(kafka, postgres, make_topic("verify", PARTITIONS), tmp_path)
    videos = Videos(db)
    for number in range(1, VIDEOS + 1):
        await videos.create(UUID(uuid(number)), UUID(uuid(99)), f"video {number}", description="d")
        await videos.update(UUID(uuid(number)), {"tags": ["a", "b"], "status": "ready", "title": "t"})
    await videos.update(UUID(uuid(1)), {"tags": [], "description": None, "published_at": None, "duration_micros": 5})
    await videos.delete(UUID(uuid(VIDEOS)))
    await caught_up(made)
    return made


async def caught_up(world: World) -> None:
    """What is in the outbox is in the projection."""
    await PollingRelay(world.settings, world.url).drain()
    await world.replay(TopicPlan()).live()


def verify(world: World, *arguments: str) -> Result:
    return world.here("verify", "projection", *arguments)


async def verified(world: World, *arguments: str) -> tuple[int, dict[str, dict[str, object]]]:
    """Exit code, and what it says of source and topic."""
    done = await asyncio.to_thread(verify, world, "--json", *arguments)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return done.exit_code, {verdict["name"]: verdict for verdict in found}


def wrong(verdict: dict[str, object]) -> dict[str, object]:
    return {kind: verdict[kind] for kind in ("missing", "extra", "stale") if verdict[kind]}


async def test_what_is_equal_is_equal_by_every_way(world: World) -> None:
    done = await asyncio.to_thread(verify, world, "--key-ranges", "7")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        f"source: {VIDEOS - 1} rows, sink: {VIDEOS - 1}; 0 of 7 key ranges differ",
        f"topic: {VIDEOS} rows, sink: {VIDEOS}; 0 of 7 key ranges differ",
        "equal",
    ]


async def test_events_that_the_inbox_has_forgotten_are_not_missed(world: World, db: Connection) -> None:  # T19
    await db.execute(
        "INSERT INTO millstream.positions (sink, topic, partition, topic_id, epoch, first, last, crc, rows)"
        " SELECT 'videos/projection', $1, p, '', 0, 0, 1000, 0, 0 FROM generate_series(0, 2) p",
        world.topic,
    )
    await prune(db, 0)
    code, found = await verified(world, "--grace", "0")
    assert (code, wrong(found["source"]), wrong(found["topic"])) == (0, {}, {})
    good = await held(db)
    await db.execute(f"DELETE FROM catalog.video_projection WHERE video_id = '{uuid(3)}'")
    await db.execute(
        'UPDATE catalog.video_projection SET field_versions = field_versions || \'{"title": [9, "x", "wrong"]}\''
        f" WHERE video_id = '{uuid(4)}'"
    )
    code, found = await verified(world, "--grace", "0", "--repair")
    assert (code, wrong(found["source"])) == (0, {})
    assert await held(db) == good


async def test_planted_damage_of_rows_is_found_and_only_that_is_repaired(world: World, db: Connection) -> None:
    good = await held(db)
    await db.execute(
        f"DELETE FROM catalog.video_projection WHERE video_id = '{uuid(3)}';"
        'UPDATE catalog.video_projection SET field_versions = field_versions || \'{"title": [9, "x", "wrong"]}\''
        f" WHERE video_id = '{uuid(4)}';"
        f"UPDATE catalog.video_projection SET deleted_version = 0 WHERE video_id = '{uuid(VIDEOS)}';"
        "INSERT INTO catalog.video_projection (video_id, version, created_version, events_applied, field_versions)"
        f' VALUES (\'{PLANTED}\', 1, 1, 1, \'{{"title": [1, "x", "planted"]}}\')'
    )
    touched = {uuid(3), uuid(4), uuid(VIDEOS), PLANTED}
    xmins = {str(r[0]): r[1] for r in await db.fetch("SELECT video_id, xmin::text FROM catalog.video_projection")}
    code, found = await verified(world)
    assert code == 3
    assert wrong(found["source"]) == {"missing": [uuid(3)], "stale": [uuid(4)], "extra": [uuid(VIDEOS), PLANTED]}
    assert wrong(found["topic"]) == {"missing": [uuid(3)], "stale": [uuid(4), uuid(VIDEOS)], "extra": [PLANTED]}
    assert found["topic"]["differing"] in (2, 3, 4)  # of 256 ranges, four keys
    done = await asyncio.to_thread(verify, world, "--repair")
    assert done.exit_code == 0, done.stdout
    assert "repaired: 4 of 4 keys\n" in done.stderr
    assert await held(db) == good
    after = {str(r[0]): r[1] for r in await db.fetch("SELECT video_id, xmin::text FROM catalog.video_projection")}
    assert {video for video in xmins.keys() | after.keys() if xmins.get(video) != after.get(video)} == touched


async def test_events_on_their_way_are_no_difference_and_lost_ones_are(world: World, db: Connection) -> None:
    videos = Videos(db)
    await videos.update(UUID(uuid(5)), {"title": "written, not published"})
    code, found = await verified(world)
    assert (code, found["source"]["waiting"]) == (0, 1)
    await PollingRelay(world.settings, world.url).drain()
    code, found = await verified(world, "--grace", "0")  # published; the topic says that nobody has come to it yet
    assert (code, found["source"]["waiting"], found["topic"]["waiting"]) == (0, 1, 1)
    code, found = await verified(world, "--grace", "0", "--no-topic")
    assert (code, wrong(found["source"])) == (3, {"stale": [uuid(5)]})
    await db.execute(  # as if a worker had gone past it
        "INSERT INTO millstream.positions (sink, topic, partition, topic_id, epoch, first, last, crc, rows)"
        " SELECT 'videos/projection', $1, p, '', 0, 0, 1000, 0, 0 FROM generate_series(0, 2) p",
        world.topic,
    )
    code, found = await verified(world)
    assert (code, wrong(found["source"]), wrong(found["topic"])) == (3, {"stale": [uuid(5)]}, {"stale": [uuid(5)]})
    code, found = await verified(world, "--repair")
    assert code == 0
    assert (await held(db))[uuid(5)]["title"] == "written, not published"


async def test_what_no_event_told_of_is_told_by_new_events_that_go_the_usual_way(world: World, db: Connection) -> None:
    await db.execute("UPDATE catalog.videos SET title = 'by hand' WHERE video_id = $1", UUID(uuid(6)))  # RO-94
    await db.execute("DELETE FROM catalog.videos WHERE video_id = $1", UUID(uuid(7)))
    await db.execute(
        "INSERT INTO catalog.videos (video_id, uploader_id, title, tags, published_at)"
        " SELECT gen_random_uuid(), $1, 'before there was an outbox', '{x}', now() FROM generate_series(1, 20)",
        UUID(uuid(8)),
    )
    code, found = await verified(world, "--no-topic")
    assert code == 3
    assert {kind: len(keys) for kind, keys in wrong(found["source"]).items()} == {"missing": 20, "extra": 1, "stale": 1}
    done = await asyncio.to_thread(verify, world, "--repair")
    assert done.exit_code == 0, done.stdout
    assert "of 22 no event told: new ones are in the outbox" in done.stderr
    await caught_up(world)
    code, found = await verified(world)
    assert (code, found["source"]["waiting"]) == (0, 0)
    rows = await held(db)
    assert (rows[uuid(6)]["title"], rows[uuid(7)]["visible"], len(rows)) == ("by hand", False, VIDEOS + 20)
    assert await db.fetchval("SELECT count(*) FROM catalog.video_gaps") == 0


async def test_rows_whose_first_events_left_the_topic_are_told_and_not_taken_away(world: World, db: Connection) -> None:
    await db.execute(
        "INSERT INTO catalog.inbox_events SELECT gen_random_uuid(), event_type, aggregate_id, 77, digest, 'gone.topic',"
        " 0, 0, now() FROM catalog.inbox_events WHERE aggregate_id = $1 LIMIT 1",
        UUID(uuid(9)),
    )
    await db.execute("UPDATE catalog.video_projection SET events_applied = 3 WHERE video_id = $1", UUID(uuid(9)))
    done = await asyncio.to_thread(verify, world)
    assert (done.exit_code, f"no longer in the topic: 1: {uuid(9)}" in done.stdout) == (0, True)
    await db.execute("UPDATE catalog.videos SET title = 'x' WHERE video_id = $1", UUID(uuid(9)))
    before = (await held(db))[uuid(9)]
    assert (await asyncio.to_thread(verify, world, "--repair")).exit_code == 0
    assert (await held(db))[uuid(9)] == before  # what is new comes by an event of its own
    await caught_up(world)
    assert (await held(db))[uuid(9)]["title"] == "x"


async def test_a_repair_that_is_killed_has_whole_rows_and_the_next_one_goes_on(world: World, db: Connection) -> None:
    good = await held(db)
    await db.execute("DELETE FROM catalog.video_projection")
    arguments = ("verify", "projection", "--repair")
    killed = await asyncio.to_thread(lambda: world.cli()(*arguments, FAILPOINTS="postgres.projection.merged=kill"))
    assert killed.returncode == -9
    assert await held(db) == {}
    killed = await asyncio.to_thread(lambda: world.cli()(*arguments, FAILPOINTS="verify.repaired=kill"))
    assert killed.returncode == -9
    rows = await held(db)
    assert rows == {video: good[video] for video in rows}
    assert (await verified(world, "--repair"))[0] == 0
    assert await held(db) == good


async def test_an_emptied_business_table_deletes_nothing(world: World, db: Connection) -> None:
    await db.execute("DELETE FROM catalog.videos")
    failed = await asyncio.to_thread(verify, world, "--no-topic", "--repair")
    assert (failed.exit_code, "would delete every video" in failed.stderr) == (1, True)
    assert await db.fetchval("SELECT count(*) FROM catalog.outbox_events WHERE published_at IS NULL") == 0


async def test_a_repair_and_a_replay_keep_out_of_each_others_way(world: World, db: Connection) -> None:
    await world.send([event(UPDATED, 9, None, 1, title="new")])
    await db.execute("SELECT pg_advisory_lock(hashtextextended('millstream replay', 0))")
    await db.execute("DELETE FROM catalog.video_projection WHERE video_id = $1", UUID(uuid(2)))
    done = await asyncio.to_thread(verify, world, "--repair")
    assert (done.exit_code, "another replay (or repair) is running" in done.stderr) == (1, True)
