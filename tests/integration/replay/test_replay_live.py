"""Events read again into the live projection: what is right stays, what is missing comes, and a kill is no restart."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import confluent_kafka as ck
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millstream.errors import ConfigError
from millstream.postgres import Connection, connect
from schemas.events import CREATED, UPDATED, Event
from sinks.postgres import VideoProjection
from sinks.postgres.inbox import prune
from sources.outbox import Videos
from streams.replay.plan import OutboxPlan, TopicPlan
from streams.replay.topic import Range, TopicSource
from tests.integration.postgres.test_projection import EMPTY, running  # noqa: F401
from tests.integration.postgres.test_projection import histories as any_events
from tests.integration.replay.world import DAMAGE, World, content, histories
from tests.support.kafka import produce
from tests.support.projection import chunk_of, errors, fold, held, record
from tests.support.waiting import until
from tests.unit.events.events import event, uuid


async def test_an_emptied_projection_is_filled_though_the_inbox_knows_every_event(world: World, db: Connection) -> None:
    events = histories(40)  # T58
    await world.send([*events, *events[:30]])
    first = await world.replay().live()
    assert (first.counts["records"], first.counts["applied"], first.counts["duplicates"]) == (270, 240, 30)
    assert await held(db) == fold(events)
    before = await content(db)
    again = await world.replay().live()
    assert (again.counts["applied"], again.counts["created"], again.counts["changed"]) == (0, 0, 0)
    assert await content(db) == before
    await db.execute("DELETE FROM catalog.video_projection")
    filled = await world.replay().live()
    assert (filled.counts["applied"], filled.counts["created"]) == (0, 40)
    assert await held(db) == fold(events)
    assert await content(db) == before


async def test_equal_versions_and_reused_ids_come_out_the_same_from_a_second_reading(
    world: World, db: Connection
) -> None:  # T49
    events = [event(CREATED, 1), event(UPDATED, 2, 20, title="one"), event(UPDATED, 2, 21, title="other"),
              event(UPDATED, 2, 20, title="reused")]  # fmt: skip
    await world.send(events)
    await world.replay().live()
    before, recorded = await held(db), [(e["kind"], e["event_id"]) for e in await errors(db)]
    assert before[uuid(1)]["events_applied"] == 4
    for ruin in ("SELECT 1", "DELETE FROM catalog.video_projection", EMPTY):
        await db.execute(ruin)
        await world.replay().live()
        assert await held(db) == before
        assert [(e["kind"], e["event_id"]) for e in await errors(db)] == recorded


async def test_a_pruned_inbox_is_no_reason_to_count_events_again(world: World, db: Connection) -> None:  # T19
    events = histories(20)
    await world.send(events)
    await world.replay().live()
    await prune(db, 0)
    dry = await world.replay().dry(rebuild=False)
    assert dry.diff == {}
    for _ in range(2):
        counts = (await world.replay().live()).counts
        assert (counts["records"], counts["created"], counts["changed"]) == (120, 0, 0)
        assert await held(db) == fold(events)
    await prune(db, 0)
    await world.send([event(UPDATED, 99, None, 1, title="new")])
    await world.replay().live()
    assert await held(db) == fold(world.sent)


async def test_a_dry_run_says_what_a_run_would_change_and_changes_nothing(world: World, db: Connection) -> None:
    events = histories(20)
    await world.send(events)
    await world.replay().live()
    await db.execute(DAMAGE)
    await db.execute(f"DELETE FROM catalog.inbox_events WHERE aggregate_id = '{uuid(3)}'")
    await db.execute(f"DELETE FROM catalog.video_projection WHERE video_id = '{uuid(3)}'")
    before = await content(db)
    dry = await world.replay(rate=100_000).dry(rebuild=False)
    assert await content(db) == before
    assert dry.diff is not None
    told = {kind: (found.rows, found.first) for kind, found in dry.diff.items()}
    assert told["created"] == (2, [uuid(1), uuid(3)])
    run = await world.replay().live()
    assert run.counts["created"] == 2
    assert run.counts["applied"] == dry.counts["applied"] == 6
    compared = await world.replay().dry(rebuild=True)
    assert compared.diff is not None
    # What no event says is not undone by events: that is for a rebuild, or for verify.
    assert {kind: found.first for kind, found in compared.diff.items()} == {
        "missing": [str(UUID(int=0xFFFF))],
        "different": [uuid(2)],
    }


async def test_a_replay_begins_at_a_time_or_at_offsets_and_ends_where_the_log_ended(
    world: World, db: Connection
) -> None:
    await world.send([event(CREATED, 1, None, video) for video in range(1, 7)], partition=0, timestamp=1_000_000)
    await world.send([event(UPDATED, 2, None, video, title="t") for video in range(1, 7)], partition=1)
    recent = datetime.fromtimestamp(time.time() - 3600, UTC)
    assert (await world.replay(TopicPlan(recent)).live()).counts["records"] == 6
    assert {row["visible"] for row in (await held(db)).values()} == {False}
    assert (await world.replay(TopicPlan(offsets={0: 4})).live()).counts["records"] == 2
    assert (await world.replay(TopicPlan(offsets={0: 6, 2: 0})).live()).counts["records"] == 0
    for offsets, told in (({0: 7}, "ends at 6, before 7"), ({5: 0}, "has partitions 0 to 2, not 5")):
        with pytest.raises(ConfigError, match=told):
            await world.replay(TopicPlan(offsets=offsets)).live()
    assert (await world.replay(TopicPlan(datetime(2999, 1, 1, tzinfo=UTC))).live()).counts["records"] == 0
    world.settings = world.settings.model_copy(update={"outbox_topics": {"video": "nobody-made-this"}})
    with pytest.raises(ConfigError, match="there is no topic"):
        await world.replay().live()


async def test_an_end_that_the_leader_does_not_show_yet_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a change of the leader: the new one learns of the end after the old one has told us."""
    ends: list[int] = []

    class Watched(ck.Consumer):
        def consume(self, *arguments: Any) -> list[ck.Message]:
            found: list[ck.Message] = super().consume(*arguments)
            ends.extend(message.offset() or 0 for message in found if message.error() is not None)
            return found

    await world.send([event(CREATED, 1, None, video) for video in range(1, 4)], partition=0)
    source, offsets = TopicSource(world.settings, world.topic, TopicPlan()), list[int]()
    assert await source.prepare({}) == 3
    source.ranges[0] = Range(0, 5)
    monkeypatch.setattr("confluent_kafka.Consumer", Watched)

    async def read() -> None:
        async with aclosing(source.slices(2)) as slices:
            async for found in slices:
                offsets.extend(record.offset for record in found.records)

    reading = asyncio.create_task(read())
    await until(lambda: ends, 60, "the end that is shown")
    await world.send([event(CREATED, 1, None, video) for video in range(4, 8)], partition=0)
    await reading
    assert (ends[0], offsets) == (3, [0, 1, 2, 3, 4])


async def test_the_outbox_brings_what_the_topic_never_had(world: World, db: Connection) -> None:  # RO-68, RO-82
    videos = Videos(db)
    for number in range(1, 31):
        await videos.create(UUID(uuid(number)), UUID(uuid(99)), f"video {number}")
        await videos.update(UUID(uuid(number)), {"tags": ["a"], "title": "later"})
    await videos.delete(UUID(uuid(30)))
    world.settings = world.settings.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})  # needs no Kafka
    outcome = await world.replay(OutboxPlan(), rate=20).live()
    assert (outcome.counts["records"], outcome.counts["applied"]) == (61, 61)
    rows = await held(db)
    assert [n for n in range(1, 31) if not rows[uuid(n)]["visible"]] == [30]
    assert {tuple(row["tags"]) for n, row in rows.items() if row["visible"]} == {("a",)}
    later = await world.replay(OutboxPlan(datetime(2999, 1, 1, tzinfo=UTC))).live()
    assert later.counts["records"] == 0
    rebuilt = await world.replay(OutboxPlan(), rate=40).rebuild()
    assert (rebuilt.counts["records"], rebuilt.diff) == (61, {})


async def test_poison_and_refused_events_are_counted_and_the_rest_goes_in(world: World, db: Connection) -> None:
    await world.send([event(CREATED, 1)])
    refused = record(event(UPDATED, 2), 0, schema_version="v9")
    poison = {"key": b"k", "value": b"\xff\xff"}
    wrong = {"key": refused.key, "value": refused.value, "headers": list(refused.headers)}
    await asyncio.to_thread(produce, world.kafka, world.topic, [poison, wrong])
    counts = (await world.replay().live()).counts
    assert (counts["records"], counts["applied"], counts["undecodable"], counts["errors"]) == (3, 1, 1, 1)
    assert [e["kind"] for e in await errors(db)] == ["schema_version"]


async def test_the_rate_is_kept(world: World) -> None:
    await world.send(histories(10))
    began = time.monotonic()
    assert (await world.replay(rate=40).live()).counts["records"] == 60
    assert time.monotonic() - began >= 60 / 40


async def test_only_one_replay_runs_at_a_time(world: World, db: Connection) -> None:
    await world.send(histories(10))
    waiting = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'catalog.inbox_events'::regclass"
    async with db.transaction():
        await db.execute("LOCK TABLE catalog.inbox_events IN EXCLUSIVE MODE")
        first = asyncio.create_task(world.replay().live())
        await until(lambda: world.sql(waiting), 60, "the first slice to wait for the table")
        with pytest.raises(ConfigError, match="another replay"):
            await world.replay().live()
    assert (await first).counts["records"] == 60


def test_a_replay_that_is_killed_goes_on_where_it_was(world: World) -> None:  # RO-68
    events = histories(20)
    world.produce(events)
    cli, arguments = world.cli(), ("replay", "--from", "beginning", "--rate", "25")
    for point in ("replay.applied", "postgres.recorded"):
        killed = cli(*arguments, FAILPOINTS=f"{point}=kill")
        assert killed.returncode == -9, killed.stderr
    (place,) = asyncio.run(world.sql("SELECT sum(last + 1) FROM millstream.positions"))[0]
    assert place == 25  # the second one died with its slice
    told = world.ok(*arguments)
    assert "went on where an earlier replay was ended" in told
    assert "events read: 95\n" in told
    assert asyncio.run(world.sql("SELECT count(*) FROM millstream.positions")) == [(0,)]
    assert "events read: 120\n" in world.ok(*arguments[:3])

    async def check() -> None:
        async with connect(world.url) as connection:
            assert await held(connection) == fold(events)

    asyncio.run(check())


def test_the_command_says_what_it_did_and_what_is_wrong(world: World) -> None:
    world.produce(histories(3, 2))
    dry = world.ok("replay", "--from", "beginning", "--dry-run")
    assert "events read: 6\nnew to the projection: 6\n" in dry
    assert re.search(r"rows that would be created: 3: 00000000-.*\nrows that would be changed: 0\n", dry)
    assert world.ok("replay", "--drop") == "there was none\n"
    failed = world.here("replay", "--offset", "0:999")
    assert (failed.exit_code, "ends at" in failed.stderr) == (1, True)
    assert "127.0.0.1:1" in world.here("replay", "--from", "beginning", BOOTSTRAP_SERVERS="127.0.0.1:1").stderr


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_events(), st.data())
def test_replays_in_any_order_and_overlap_give_the_rows_of_the_events(
    running: tuple[asyncio.Runner, Connection],  # noqa: F811
    events: list[Event],
    data: st.DataObject,
) -> None:  # T58
    runner, connection = running
    parts = data.draw(st.lists(st.lists(st.sampled_from(events), min_size=1, max_size=6), max_size=4))
    again = data.draw(st.lists(st.booleans(), min_size=len(parts) + 2, max_size=len(parts) + 2))

    async def take(part: list[Event], replay: bool) -> None:
        async with connection.transaction():
            chunk = chunk_of([record(e, i) for i, e in enumerate(part)])
            await VideoProjection(again=replay)(connection, chunk)

    async def run() -> None:
        await connection.execute(EMPTY)
        for part, replay in zip([*parts, events], again, strict=False):
            await take(part, replay)
        assert await held(connection) == fold(events)
        if data.draw(st.booleans()):
            await connection.execute("DELETE FROM catalog.video_projection")
        await take(data.draw(st.permutations(events)), True)
        assert await held(connection) == fold(events)

    runner.run(run())
