"""Events into the projection: the same row from any order and any chunks, and everything that is refused on record."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millstream import failpoints
from millstream.errors import ConfigError, SinkError
from millstream.postgres import Connection, connect
from schemas.events import CREATED, DELETED, UPDATED, Event
from schemas.log_records import LogRecord
from sinks.postgres import PostgresConfig, PostgresStream, VideoProjection
from tests.support.projection import chunk_of, errors, fold, held, record
from tests.unit.events.events import event, payloads, types, uuid

EMPTY = "".join(f"DELETE FROM catalog.{t};" for t in ("inbox_events", "video_projection", "projection_errors"))


async def take(connection: Connection, records: list[LogRecord]) -> dict[str, int]:
    async with connection.transaction():
        counts = await VideoProjection()(connection, chunk_of(records))
    return {name: int(n) for name, n in counts.items() if n != "0"}


async def apply(connection: Connection, *events: Event) -> dict[str, int]:
    return await take(connection, [record(e, i, as_json=i % 2 == 1) for i, e in enumerate(events)])


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Events of two videos: versions in gaps, equal versions, several creations and deletions."""
    found = []
    for number in range(draw(st.integers(1, 9))):
        kind = draw(types)
        found.append(event(kind, draw(st.integers(1, 7)), number, draw(st.integers(1, 2)), **draw(payloads(kind))))
    return found


@pytest.fixture
def running(postgres: str) -> Iterator[tuple[asyncio.Runner, Connection]]:
    """A loop and a connection on it, for a test that is no coroutine."""
    with asyncio.Runner() as runner:
        context = connect(postgres)
        yield runner, runner.run(context.__aenter__())
        runner.run(context.__aexit__(None, None, None))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories(), st.data())
def test_any_order_and_any_chunks_of_the_same_events_give_the_same_row(
    running: tuple[asyncio.Runner, Connection], events: list[Event], data: st.DataObject
) -> None:  # T44, T45, T46, T47, T49, T53
    orders = [data.draw(st.permutations(events)), data.draw(st.permutations(events))]
    redelivered = data.draw(st.lists(st.sampled_from(events), max_size=4))

    async def run() -> None:
        for order in (events, *orders):
            await connection.execute(EMPTY)
            left = [*order, *redelivered]
            while left:
                size = data.draw(st.integers(1, len(left)))
                await apply(connection, *left[:size])
                left = left[size:]
            assert await held(connection) == fold(events)
            ids = {str(r["event_id"]) for r in await connection.fetch("SELECT event_id FROM catalog.inbox_events")}
            assert ids == {e.event_id for e in events}

    runner, connection = running
    runner.run(run())


async def test_all_orders_of_a_life_give_the_same_row(database: Connection) -> None:
    from itertools import permutations

    life = [
        event(CREATED, 1, title="a", description="d", status="ready"),
        event(UPDATED, 2, title="b", tags=["x"]),
        event(UPDATED, 3, description=None, tags=[], status="published"),
        event(DELETED, 4),
        event(CREATED, 5, title="again"),
    ]
    for order in permutations(life):
        await database.execute(EMPTY)
        for e in order:
            await apply(database, e)
        assert await held(database) == fold(life)


async def test_a_late_update_does_not_bring_back_what_was_deleted(database: Connection) -> None:  # T44
    await apply(database, event(CREATED, 1, title="a"), event(DELETED, 3))
    await apply(database, event(UPDATED, 2, title="b"))
    await apply(database, event(CREATED, 1, title="a"))
    row = (await held(database))[uuid(1)]
    assert (row["visible"], row["version"], row["deleted_version"], row["title"]) == (False, 3, 3, None)


async def test_an_update_before_its_creation_is_kept_and_not_shown(database: Connection) -> None:  # T45
    await apply(database, event(UPDATED, 2, title="new", summary=""))
    assert (await held(database))[uuid(1)]["visible"] is False
    await apply(database, event(CREATED, 1, title="old", description="d"))
    row = (await held(database))[uuid(1)]
    assert (row["visible"], row["title"], row["description"], row["summary"]) == (True, "new", "d", "")


async def test_a_late_partial_update_keeps_its_own_fields(database: Connection) -> None:  # T46
    await apply(database, event(CREATED, 1, title="a", status="ready"), event(UPDATED, 3, title="c"))
    await apply(database, event(UPDATED, 2, title="b", status="published"))
    row = (await held(database))[uuid(1)]
    assert (row["title"], row["status"], row["version"]) == ("c", "published", 3)


async def test_null_clears_empty_is_a_value_and_absent_leaves_alone(database: Connection) -> None:  # T47
    await apply(database, event(CREATED, 1, title="t", description="d"), event(UPDATED, 2, tags=["a"], summary="s"))
    await apply(database, event(UPDATED, 3, description=None, tags=[], summary=""))
    row = (await held(database))[uuid(1)]
    assert (row["title"], row["description"], row["tags"], row["summary"]) == ("t", None, [], "")


async def test_equal_versions_with_other_content_are_recorded_and_have_one_winner(database: Connection) -> None:  # T49
    one, other = event(UPDATED, 2, 20, title="one"), event(UPDATED, 2, 21, title="other")
    assert await apply(database, event(CREATED, 1), other) == {"applied": 2}
    assert await apply(database, one, one, other) == {"applied": 1, "duplicates": 2, "conflicts": 1}
    assert (await held(database))[uuid(1)]["title"] == "other"
    (found,) = await errors(database)
    assert (found["kind"], str(found["event_id"])) == ("equal_version", one.event_id)
    assert (found["version"], found["seen"]) == (2, 1)
    assert other.event_id in found["error"]
    both = [event(UPDATED, 3, 30, title="x"), event(UPDATED, 3, 31, title="y")]
    assert await apply(database, *both) == {"applied": 2, "conflicts": 2}
    same = [event(UPDATED, 4, 40, title="z"), event(UPDATED, 4, 41, title="z")]
    assert await apply(database, *same) == {"applied": 2}  # published twice under two ids: nothing differs


async def test_an_identical_redelivery_is_silent_in_either_encoding(database: Connection) -> None:  # T49, T53, RO-55
    e = event(CREATED, 1, title="a")
    assert await take(database, [record(e, 0), record(e, 1, as_json=True), record(e, 2)]) == {
        "applied": 1,
        "duplicates": 2,
    }
    assert await take(database, [record(e, 3)]) == {"duplicates": 1}
    assert await errors(database) == []


async def test_an_event_id_used_for_other_content_is_recorded_and_order_does_not_matter(database: Connection) -> None:
    one, other = event(UPDATED, 2, 9, title="a"), event(UPDATED, 2, 9, title="b")
    results = []
    for order in ([one, other, other, one], [other, one, one, other]):
        await database.execute(EMPTY)
        for e in order:
            await apply(database, e)
        results.append((await held(database))[uuid(1)])
        assert [row["kind"] for row in await errors(database)] == ["event_id"]
    assert results[0] == results[1]
    assert (results[0]["title"], results[0]["events_applied"]) == ("b", 2)


async def test_business_errors_are_recorded_with_their_bytes_and_their_neighbours_applied(database: Connection) -> None:
    good, bad = event(CREATED, 1, title="a"), event(UPDATED, 2, title="b")  # T57, T60, RO-89
    spoilt = [
        record(bad, 1, schema_version="v2"),
        record(bad, 2, aggregate_id=uuid(7)),
        record(bad, 3, event_type="video.renamed"),
        record(bad, 4, version="0"),
        record(bad, 5, version="-1"),
    ]
    assert await take(database, [record(good, 0), *spoilt, record(good, 6)]) == {
        "applied": 1,
        "duplicates": 1,
        "errors": 5,
    }
    found = await errors(database)
    assert [(e["kind"], e["offset"]) for e in found] == [
        ("header", 2), ("header", 3), ("schema_version", 1), ("version", 4), ("version", 5),
    ]  # fmt: skip
    by_offset = {e["offset"]: e for e in found}
    for r in spoilt:
        kept = by_offset[r.offset]
        assert (kept["key"], kept["value"]) == (r.key, r.value)
        assert kept["headers"] == [[name, (raw or b"").decode()] for name, raw in r.headers]
    inbox = await database.fetch("SELECT event_id FROM catalog.inbox_events")
    assert [str(row["event_id"]) for row in inbox] == [good.event_id]  # not in the inbox: nothing says processed
    assert await take(database, [spoilt[0], spoilt[0]]) == {"errors": 2}
    assert {e["offset"]: e["seen"] for e in await errors(database)}[1] == 3


async def test_headers_that_are_no_text_are_kept_too(database: Connection) -> None:  # T60
    r = record(event(CREATED, 1), 0)
    r = r._replace(key=None, headers=[*r.headers, ("x", b"\xff\0"), ("y", b"a\0"), ("event_type", b"\0"), ("z", None)])
    assert await take(database, [r]) == {"errors": 1}
    (found,) = await errors(database)
    assert found["headers"][-4:] == [["x", None, "ff00"], ["y", None, "6100"], ["event_type", None, "00"], ["z", ""]]


async def test_gaps_are_visible_until_they_are_filled(database: Connection) -> None:
    gaps = "SELECT version, missing FROM catalog.video_gaps"
    await apply(database, event(CREATED, 1), event(UPDATED, 4, 40), event(UPDATED, 4, 41, title="x"))
    assert [tuple(row) for row in await database.fetch(gaps)] == [(4, 2)]
    await apply(database, event(UPDATED, 2), event(UPDATED, 3))
    assert await database.fetch(gaps) == []


async def test_statements_do_not_grow_with_the_chunk(database: Connection) -> None:
    counted = []
    for size in (3, 3000):
        statements: list[str] = []
        database.add_query_logger(lambda q, s=statements: s.append(q.query))  # type: ignore[misc]
        events = [event(UPDATED, v, v, video, title=f"{v}") for video in range(size // 3) for v in (1, 2, 3)]
        await apply(database, *random.Random(1).sample(events, len(events)))
        counted.append(len([q for q in statements if " catalog." in q]))
        database._query_loggers.clear()
        await database.execute(EMPTY)
    assert counted[0] == counted[1] <= 5


async def test_why_a_chunk_was_not_applied_is_readable_after_the_rollback(database: Connection, postgres: str) -> None:
    await database.execute("ALTER TABLE catalog.video_projection ADD CHECK (title <> 'forbidden')")  # T56
    sink = PostgresStream(PostgresConfig(postgres, 2), VideoProjection())
    await sink.open()
    chunk = chunk_of([record(event(CREATED, 1, title="forbidden"), 5), record(event(CREATED, 1, 9, 2), 6)])
    try:
        for _ in range(2):
            with pytest.raises(SinkError, match="The chunk was not written"):
                await sink.write_chunk(chunk)
        assert await held(database) == {}
        (found,) = await errors(database)
        assert (found["kind"], found["seen"]) == ("not_applied", 2)
        assert "offsets 5..6 were not applied: CheckViolationError" in found["error"]
        await database.execute("ALTER TABLE catalog.video_projection DROP CONSTRAINT video_projection_title_check")
        assert (await sink.write_chunk(chunk)).details["applied"] == "2"
        assert await sink.have(chunk) == await sink.write_chunk(chunk)  # hole h
    finally:
        await sink.close()


@pytest.mark.parametrize("at", ["postgres.projection.received", "postgres.projection.merged"])
async def test_inbox_projection_and_errors_are_there_together_or_not_at_all(
    database: Connection, postgres: str, at: str
) -> None:  # T56, RO-50
    sink = PostgresStream(PostgresConfig(postgres, 2), VideoProjection())
    await sink.open()
    chunk = chunk_of([record(event(CREATED, 1), 0), record(event(UPDATED, 2), 1, schema_version="v9")])
    failpoints.arm(f"{at}=error")
    try:
        with pytest.raises(failpoints.FailpointError):
            await sink.write_chunk(chunk)
    finally:
        failpoints.arm("")
    tables = ("inbox_events", "video_projection", "projection_errors")
    count = "SELECT " + " + ".join(f"(SELECT count(*) FROM catalog.{table})" for table in tables)
    assert await database.fetchval(count) == 0
    await sink.write_chunk(chunk)
    assert await database.fetchval(count) == 3
    await sink.close()


async def test_a_table_that_is_missing_is_named_at_the_start(database: Connection, postgres: str) -> None:
    sink = PostgresStream(PostgresConfig(postgres, 1), VideoProjection("catalog_shadow"))
    with pytest.raises(ConfigError, match=r"no table catalog_shadow\.inbox_events"):
        await sink.open()
    await sink.close()
    with pytest.raises(ConfigError, match="a plain name"):
        VideoProjection("catalog; drop table x")
