"""The projection built anew beside the live one: what differs is named, the exchange loses nothing, or is refused."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from millstream.errors import ConfigError
from millstream.postgres import Connection, connect
from schemas.events import CREATED, UPDATED
from sinks.postgres import PostgresConfig, PostgresStream, VideoProjection, shadow
from sinks.postgres.inbox import prune
from sinks.postgres.shadow import SwapRefusedError
from sources.outbox import Videos
from streams.replay.plan import OutboxPlan, TopicPlan
from streams.replay.run import drop
from tests.integration.postgres.test_migrations import _dump
from tests.integration.replay.world import DAMAGE, World, content, histories
from tests.support.projection import chunk_of, fold, held, record
from tests.support.waiting import wait_until
from tests.unit.events.events import event, history, uuid

PLANTED = str(UUID(int=0xFFFF))
MANY = 1200
"""Videos of the run beside a live worker."""


async def build(world: World, db: Connection, videos: int = 20) -> None:
    """A projection that holds what the topic says, then damage."""
    await world.send(histories(videos))
    await world.replay().live()
    await db.execute(DAMAGE)


async def test_what_differs_is_named_and_nothing_changes_before_the_swap(world: World, db: Connection) -> None:
    await build(world, db)  # RO-68, RO-94
    before = await content(db)
    outcome = await world.replay().rebuild()
    after = await content(db)
    assert {t: after[t] for t in list(after)[:3]} == {t: before[t] for t in list(before)[:3]}
    assert outcome.diff is not None
    assert {kind: (found.rows, found.first) for kind, found in outcome.diff.items()} == {
        "missing": (1, [PLANTED]),
        "extra": (1, [uuid(1)]),
        "different": (1, [uuid(2)]),
    }
    assert await held(db, shadow.SCHEMA) == fold(world.sent)
    assert await drop(world.settings) == "millstream replay --rebuild: topic from beginning"
    assert await content(db) == before
    assert await shadow.found(db) is None


async def test_after_a_swap_the_database_is_as_migrations_make_it_and_holds_what_the_events_say(
    world: World, db: Connection
) -> None:
    await build(world, db)
    await db.execute(
        "CREATE VIEW catalog.titles WITH (security_barrier=true) AS SELECT title FROM catalog.video_projection;"
        "DO $$ BEGIN CREATE ROLE replay_reader; EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
        "GRANT SELECT ON catalog.video_projection, catalog.titles TO replay_reader;"
        "GRANT INSERT ON catalog.inbox_events TO replay_reader WITH GRANT OPTION;"
        "ALTER TABLE catalog.video_projection SET (fillfactor=70, autovacuum_enabled=true)"
    )
    schema = await asyncio.to_thread(_dump, world.url)
    outcome = await world.replay().rebuild(swap=True)
    assert outcome.swapped
    assert outcome.diff is not None
    assert sorted(outcome.diff) == ["different", "extra", "missing"]
    assert await asyncio.to_thread(_dump, world.url) == schema
    assert await held(db) == fold(world.sent)
    assert await db.fetchval("SELECT count(*) FROM catalog.titles") == 20
    assert await db.fetchval("SELECT count(*) FROM catalog.video_gaps") == 0
    assert (await world.replay().live()).counts["changed"] == 0
    assert (await content(db))["millstream.positions"] == []


async def test_what_live_workers_apply_between_build_and_swap_is_caught_up(world: World, db: Connection) -> None:
    await build(world, db)
    await world.replay().rebuild()
    more = [event(UPDATED, 50, None, video, title="live") for video in range(1, 21)]
    await world.send([*more, event(CREATED, 1, None, 300)])
    late = await world.replay().live()  # as a worker does; the events get into the live tables only
    assert late.counts["applied"] == 21
    lag = await world.replay().rebuild()
    assert (lag.counts["records"], set(lag.diff or {})) == (21, {"missing"})
    outcome = await world.replay().rebuild(swap=True)
    assert (outcome.swapped, outcome.counts["records"]) == (True, 0)
    assert await held(db) == fold(world.sent)


async def test_a_lag_of_the_live_workers_is_not_called_a_difference(world: World, db: Connection) -> None:
    await world.send(histories(5))
    await world.replay().live()
    await world.send([event(UPDATED, 50, None, 1, title="to come")])
    outcome = await world.replay().rebuild()
    assert {kind: found.first for kind, found in (outcome.diff or {}).items()} == {"ahead": [uuid(1)]}
    await world.replay().rebuild(swap=True)
    assert (await world.replay().live()).counts["applied"] == 0  # the worker finds it done
    assert await held(db) == fold(world.sent)


async def test_events_that_only_the_live_projection_has_are_not_given_up_unasked(world: World, db: Connection) -> None:
    await world.send(histories(5))
    sink = PostgresStream(PostgresConfig(world.url, 1), VideoProjection())
    await sink.open()
    await sink.write_chunk(chunk_of([record(event(CREATED, 1, None, 77), 3)], "another.topic"))
    await sink.close()
    await world.replay().live()
    before = await held(db)
    with pytest.raises(SwapRefusedError, match=r"1 events .* were not read, the first in another\.topic.*offset 3"):
        await world.replay().rebuild(swap=True)
    assert await held(db) == before
    with pytest.raises(ConfigError, match=r"another source .*: topic from beginning; asked for: topic at 0:0"):
        await world.replay(TopicPlan(offsets={0: 0})).rebuild()
    with pytest.raises(SwapRefusedError, match="Rebuild from the outbox or from an earlier place"):
        await world.replay(TopicPlan(offsets={0: 0}), resume=False).rebuild(swap=True)
    outcome = await world.replay(resume=False).rebuild(swap=True, force=True)
    assert (outcome.given_up, set(outcome.diff or {})) == (1, {"behind"})
    assert await held(db) == fold(world.sent)


async def test_what_the_inbox_has_forgotten_is_not_given_up_unasked_either(world: World, db: Connection) -> None:
    early, late = histories(5, 6), [event(UPDATED, 60 + n, None, 1 + n % 5, title=str(n)) for n in range(10)]  # T19
    await world.send(early, partition=0)
    await world.send(late, partition=1)
    await world.replay().live()
    await prune(db, 0)
    before = await held(db)
    part = TopicPlan(offsets={1: 0})
    assert set((await world.replay(part).rebuild()).diff or {}) == {"behind"}
    with pytest.raises(SwapRefusedError, match=f"of 5 videos, {uuid(1)} among them, fewer events were read"):
        await world.replay(part).rebuild(swap=True)
    assert await held(db) == before
    whole = await world.replay(resume=False).rebuild(swap=True)
    assert (whole.swapped, whole.diff) == (True, {})
    assert await held(db) == before == fold(world.sent)


@pytest.mark.parametrize(
    ("attach", "told"),
    [
        ("CREATE TRIGGER told AFTER INSERT ON catalog.video_projection EXECUTE FUNCTION catalog.outbox_notify()",
         "would lose trigger told of catalog.video_projection"),
        ("CREATE MATERIALIZED VIEW catalog.heavy AS SELECT * FROM catalog.video_projection",
         r"materialized view catalog\.heavy depends on"),
        ("ALTER TABLE catalog.video_projection ADD COLUMN more text", r"altered since .* began \(column more\)"),
        ("GRANT SELECT (title) ON catalog.video_projection TO PUBLIC", "rights to column title"),
    ],
)  # fmt: skip
async def test_what_a_swap_would_lose_stops_it(world: World, db: Connection, attach: str, told: str) -> None:
    await build(world, db, 3)
    await world.replay().rebuild()
    await db.execute(attach)
    before = await content(db)
    with pytest.raises(SwapRefusedError, match=told):
        await world.replay().rebuild(swap=True)
    assert await content(db) == before
    assert await shadow.found(db) is not None


async def test_a_rebuild_from_the_outbox_catches_up_by_what_it_lacks(world: World, db: Connection) -> None:
    videos = Videos(db)  # RO-82, RO-94
    for number in range(1, 21):
        await videos.create(UUID(uuid(number)), UUID(uuid(99)), f"video {number}")
    plan = OutboxPlan()
    cold = await world.replay(plan).rebuild(swap=True)  # a cold start: there was nothing
    assert (cold.swapped, cold.counts["records"], set(cold.diff or {})) == (True, 20, {"ahead"})
    await db.execute(DAMAGE)
    await world.replay(plan, rate=6).rebuild()
    for number in range(1, 41):  # random ids: some lie before the place that the first reading has come to
        if number > 20:
            await videos.create(UUID(uuid(number)), UUID(uuid(99)), "late")
        await videos.update(UUID(uuid(number)), {"title": "later"})
    await world.replay(plan).live()
    outcome = await world.replay(plan).rebuild(swap=True)
    assert (outcome.swapped, outcome.given_up) == (True, 0)
    rows = await held(db)
    assert len(rows) == 40
    assert {(row["title"], row["version"], row["events_applied"]) for row in rows.values()} == {("later", 2, 2)}


def test_a_rebuild_that_is_killed_goes_on_and_a_killed_swap_has_changed_nothing(world: World) -> None:
    world.produce(histories(20))
    cli, arguments = world.cli(), ("replay", "--from", "beginning", "--rebuild", "--rate", "25")
    for point in ("replay.applied", "replay.swapped"):
        killed = cli(*arguments, "--swap", FAILPOINTS=f"{point}=kill")
        assert killed.returncode == -9, killed.stderr

    async def rows() -> dict[str, object]:
        async with connect(world.url) as connection:
            return await held(connection)

    assert asyncio.run(rows()) == {}
    told = world.ok(*arguments, "--swap")
    assert "went on with the rebuilt projection that was there" in told
    assert told.endswith("swapped: the rebuilt projection is the live one\n")
    assert asyncio.run(rows()) == fold(world.sent)
    kept = world.ok(*arguments)
    assert kept.endswith("with --swap to exchange them, or with --drop alone to drop it\n")
    assert "missing: 0 (" in kept
    assert world.ok("replay", "--drop").startswith("dropped: millstream replay --rebuild: topic from beginning")


def test_a_swap_beside_a_worker_that_applies_loses_and_doubles_nothing(world: World) -> None:
    """Swaps while the live worker is at work, each of a projection that was damaged before."""
    import random

    rng, cli = random.Random(3), world.cli(CHUNK_MAX_ROWS="100", CHUNK_MAX_AGE="0.1", LOG_LEVEL="info")
    left = [e for video in range(1, MANY + 1) for e in history(rng, video, 3)]
    rng.shuffle(left)

    def send(number: int) -> None:
        part = [left.pop() for _ in range(min(number, len(left)))]
        world.produce(part)

    def count(table: str) -> int:
        return int(asyncio.run(world.sql(f"SELECT count(*) FROM catalog.{table}"))[0][0])

    send(300)
    with cli.worker(STREAMS="streams.projection") as worker:
        wait_until(lambda: count("inbox_events") > 0, 120, "the worker's first chunk", every=0.2)
        swaps = 0
        for damage in (DAMAGE, "DELETE FROM catalog.video_projection WHERE video_id::text ~ '[0-7]$'"):
            asyncio.run(world.run(damage))
            swapping = cli.start("replay", "--from", "beginning", "--rebuild", "--swap", "--rate", "3000")
            while swapping.poll() is None:
                send(60)
            out, err = swapping.communicate(timeout=120)
            assert swapping.returncode == 0, out + err
            assert "swapped: the rebuilt projection is the live one" in out
            swaps += 1
        send(len(left))
        wait_until(lambda: count("inbox_events") >= len(world.sent), 120, "the worker to apply everything", every=0.2)
        assert worker.poll() is None
    assert swaps == 2

    async def rows() -> dict[str, object]:
        async with connect(world.url) as connection:
            return await held(connection)

    assert asyncio.run(rows()) == fold(world.sent)
    log = (world.home / "worker-w1.log").read_text()
    assert "Traceback" not in log
