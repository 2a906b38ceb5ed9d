"""A chunk is in the table once, whatever happened on the way: both backends."""

from __future__ import annotations

import pytest

from millstream.errors import IdentityMismatchError, SinkError
from sinks.clickhouse.schema import RAW
from tests.integration.clickhouse.conftest import Batches, Place
from tests.integration.clickhouse.data import a_chunk, a_run, rows, where


async def test_a_chunk_is_written_with_all_its_columns_and_counted_back(place: Place, batches: Batches) -> None:
    # RU-15, RU-48, RP-66; T34 binary keys; T35 number ranges; T36 exact nanoseconds
    sink, run = await batches(place), a_run()
    keys = [b"\xff\xfe\x00'\n\\\t", b"", b"42", b"k" * 1_000_000, "键".encode()]
    table = rows(
        range(5),
        key=keys,
        type=["string", "module", "hash", "stream", "zset"],
        member_count=[1, 0, 2**62, 0, 5],
        rdb_size=[2**63 - 1, 1, 2, 3, 4],
        expire_at_ms=[2**63 - 1, 0, -1, None, 10_413_791_999_999],
        idle_seconds=[None, 2**62, 0, 1, 2],
        freq=[0, 255, None, 7, 8],
        codis_slot=[None, 1023, 0, 1, 2],
        redis_slot=[16383, None, 0, 1, 2],
    )
    chunk = a_chunk(run, 0, 4)
    receipt = await sink.write_chunk(type(chunk)(chunk.id, table, run))
    assert (receipt.rows, receipt.details["table"]) == (5, f"{place.database}.redis_records_raw")
    stored = await place.rows(
        "SELECT cluster, toString(toUnixTimestamp64Nano(batch)), instance, db, hex(key), type, toString(member_count),"
        " toString(rdb_size), encoding, toUnixTimestamp64Milli(expire_at), toString(idle_seconds), freq, codis_slot,"
        " redis_slot, _topic, _partition, _offset FROM {db}.redis_records_raw ORDER BY _offset"
    )
    assert [r[4] for r in stored] == [k.hex().upper() for k in keys]
    assert {(r[0], r[1], r[2]) for r in stored} == {(run.batch.cluster, str(run.batch.batch_ts), run.instance)}
    assert [None if r[9] is None else int(r[9]) for r in stored] == [
        10_413_791_999_999, 0, -1, None, 10_413_791_999_999,
    ]  # fmt: skip
    assert [(r[5], r[6], r[7]) for r in stored][:3] == [
        ("string", "1", str(2**63 - 1)),
        ("module", "0", "1"),
        ("hash", str(2**62), "2"),
    ]
    assert [(r[10], r[11], r[12], r[13]) for r in stored][:2] == [(None, 0, None, 16383), (str(2**62), 255, 1023, None)]
    assert [(r[14], r[15], int(r[16])) for r in stored] == [("rdb.records.c.i", 0, i) for i in range(5)]


async def test_a_retried_chunk_counts_once_at_once_without_a_merge(place: Place, batches: Batches) -> None:
    # T5: ReplacingMergeTree only collapses later; the count right after the retry must be right already
    sink, run = await batches(place), a_run()
    await place.run("SYSTEM STOP MERGES {db}.redis_records_raw")
    chunk = a_chunk(run, 10, 109)
    for again in (chunk, chunk, a_chunk(run, 10, 109, replayed=True)):
        assert (await sink.write_chunk(again)).rows == 100
        assert await place.count() == 100


async def test_have_knows_a_whole_chunk_and_nothing_else(place: Place, batches: Batches) -> None:
    sink, run = await batches(place), a_run()
    written = a_chunk(run, 0, 9, replayed=True)
    assert await sink.have(written) is None
    receipt = await sink.write_chunk(written)
    assert await sink.have(written) == receipt  # hole h: the same receipt
    assert await sink.have(a_chunk(run, 10, 19, replayed=True)) is None
    assert await sink.have(a_chunk(run, 5, 14, replayed=True)) is None  # short
    assert await sink.have(a_chunk(a_run("10.0.0.2:6379"), 0, 9, replayed=True)) is None


async def test_a_range_that_holds_more_than_the_chunk_stops_the_worker(place: Place, batches: Batches) -> None:
    # hole b: present but different
    sink, run = await batches(place), a_run()
    await sink.write_chunk(a_chunk(run, 0, 9))
    other = a_chunk(run, 0, 9, replayed=True)
    fewer = type(other)(other.id, other.records.slice(0, 5), run, True)
    with pytest.raises(IdentityMismatchError, match=r"holds 10 rows of rdb.records.c.i\[0\] 0..9, the chunk has 5"):
        await sink.have(fewer)


async def test_a_chunk_without_rows_writes_nothing_and_is_had(place: Place, batches: Batches) -> None:
    sink, run = await batches(place), a_run()
    full = a_chunk(run, 0, 9)
    empty = type(full)(full.id, full.records.slice(0, 0), run, True)
    assert (await sink.write_chunk(empty)).rows == 0
    receipt = await sink.have(empty)
    assert receipt is not None
    assert receipt.rows == 0
    assert await place.count() == 0


async def test_a_stale_generation_writes_nothing_and_leaves_the_token_to_its_successor(
    place: Place, batches: Batches
) -> None:
    # hole a: the fence is in the server, so a paused owner cannot write when it wakes up (T7)
    old, new, run = await batches(place), await batches(place), a_run()
    await old.write_chunk(a_chunk(run, 0, 9, generation=4))
    await new.write_chunk(a_chunk(run, 10, 19, generation=5))
    with pytest.raises(SinkError, match=r"lost rdb.records.c.i\[0\]: a higher generation is on record, it has 4"):
        await old.write_chunk(a_chunk(run, 20, 29, generation=4))
    assert await place.count() == 20
    assert (await new.write_chunk(a_chunk(run, 20, 29, generation=5))).rows == 10
    assert await place.count() == 30
    with pytest.raises(SinkError, match="generation 5 is on record, it has 3"):
        await (await batches(place)).write_chunk(a_chunk(run, 30, 39, generation=3))
    with pytest.raises(SinkError, match="generation 5 is on record, it has 2"):
        await new.write_chunk(a_chunk(run, 30, 39, generation=2))
    assert await place.count() == 30


async def test_a_topic_made_anew_does_not_pass_for_the_old_one(place: Place, batches: Batches) -> None:
    # hole b: same name, same offsets, another log: `have` must not take the old rows for the new ones
    sink, run = await batches(place), a_run()
    await sink.write_chunk(a_chunk(run, 0, 9))
    anew = a_chunk(run, 0, 9, replayed=True, topic_id="B" * 22)
    assert await sink.have(anew) is None
    await sink.write_chunk(anew)
    assert await (await batches(place)).have(anew) is not None
    assert await place.rows("SELECT _topic, count() FROM {db}.redis_records_raw GROUP BY _topic ORDER BY _topic") in (
        [["rdb.records.c.i", 10], ["rdb.records.c.i@" + "B" * 22 + ".0", 10]],
        [["rdb.records.c.i", "10"], ["rdb.records.c.i@" + "B" * 22 + ".0", "10"]],
    )
    anew_range = where(0, 9, topic_id="B" * 22)
    assert await sink.finalize_instance(run, anew_range) == 10
    await sink.finalize_batch(run.batch, {run.instance: (run, anew_range)})
    assert await sink.count_by_instance(run.batch) == {run.instance: 10}


async def test_two_runs_in_one_range_of_a_shared_topic_do_not_share_a_token(place: Place, batches: Batches) -> None:
    sink = await batches(place)
    one, two = a_run("a:1", n=1), a_run("b:1", n=2)
    await sink.write_chunk(a_chunk(one, 0, 9))
    await sink.write_chunk(a_chunk(two, 0, 9))
    assert await sink.count_by_instance(one.batch) == {"a:1": 10, "b:1": 10}


async def test_one_key_in_two_dbs_and_on_two_instances_stays_three_rows(place: Place, batches: Batches) -> None:
    # T41
    sink, one, two = await batches(place), a_run("a:1", n=1), a_run("b:1", n=2)
    chunk = a_chunk(one, 0, 1)
    await sink.write_chunk(type(chunk)(chunk.id, rows([0, 1], db=[0, 1], key=[b"k", b"k"]), one))
    chunk = a_chunk(two, 0, 0, topic="rdb.records.c.j")
    await sink.write_chunk(type(chunk)(chunk.id, rows([0], key=[b"k"]), two))
    await place.run("OPTIMIZE TABLE {db}.redis_records_raw FINAL")
    assert await place.count() == 3


async def test_many_expiries_out_of_range_give_one_warning_per_run(
    place: Place, batches: Batches, caplog: pytest.LogCaptureFixture
) -> None:
    # T35
    caplog.set_level("WARNING")
    sink = await batches(place)
    for n in (1, 2):
        run = a_run(f"i:{n}", n=n)
        for first in (0, 10):
            chunk = a_chunk(run, first, first + 9)
            late = rows(range(first, first + 10), expire_at_ms=[2**63 - 1] * 10)
            await sink.write_chunk(type(chunk)(chunk.id, late, run))
    warned = [r for r in caplog.records if "expire_at_ms_saturated" in r.getMessage() and r.levelname == "WARNING"]
    assert len(warned) == 2


async def test_a_thousand_rows_are_one_part(place: Place, batches: Batches) -> None:
    sink, run = await batches(place), a_run()
    await place.run("SYSTEM STOP MERGES {db}.redis_records_raw")
    await sink.write_chunk(a_chunk(run, 0, 99_999))
    parts = await place.rows(
        f"SELECT count() FROM system.parts WHERE database = '{place.database}' AND table = '{RAW}' AND active"
    )
    assert int(parts[0][0]) == 1


async def test_an_insert_drops_no_row_of_its_own_so_that_the_count_can_be_trusted(
    place: Place, batches: Batches
) -> None:
    # hole g: with optimize_on_insert, ReplacingMergeTree collapses equal keys within the block at once
    sink, run = await batches(place), a_run()
    await place.run("SYSTEM STOP MERGES {db}.redis_records_raw")
    chunk = a_chunk(run, 0, 9, replayed=True)
    same = type(chunk)(chunk.id, rows(range(10), key=[b"k"] * 10), run, True)
    await sink.write_chunk(same)
    assert await place.count() == 10
    assert await sink.have(same) is not None
