"""Batches: refused, voided, completed, visible. Both backends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from millstream import failpoints
from millstream.errors import BatchRefusedError, SinkError
from millstream.failpoints import FailpointError
from millstream.settings import override_settings
from sinks.base import BatchSink
from sinks.clickhouse import ClickHouseBatches
from sources.feed import FeedJob
from streams.cli.oneshot import AlreadyPublishedError, OneShot
from tests.integration.clickhouse.conftest import Batches, Place
from tests.integration.clickhouse.data import NOW_NS, a_chunk, a_run, where

DAY_NS = 86_400 * 1_000_000_000


async def _view(place: Place) -> dict[tuple[str, str], int]:
    """(cluster, batch as it is, nine digits) -> rows, as the view shows them."""
    sql = "SELECT cluster, toString(toUnixTimestamp64Nano(batch)), count() FROM {db}.redis_records_view GROUP BY 1, 2"
    return {(cluster, batch): int(n) for cluster, batch, n in await place.rows(sql)}


async def test_rows_show_in_the_view_only_once_the_batch_is_complete(place: Place, batches: Batches) -> None:
    # RU-17, RU-65: the marker of exactly cluster + batch_ts
    sink, run = await batches(place), a_run()
    assert isinstance(sink, BatchSink)
    await sink.open_batch(run)
    await sink.write_chunk(a_chunk(run, 1, 10))
    assert await sink.finalize_instance(run, where(0, 11)) == 10  # RU-16: nothing happens, the rows are counted
    assert await _view(place) == {}
    await sink.finalize_batch(run.batch, {run.instance: (run, where(0, 11))})
    assert await _view(place) == {(run.batch.cluster, str(run.batch.batch_ts)): 10}
    marker = "SELECT cluster, toString(toUnixTimestamp64Nano(batch)) FROM {db}.import_batches_completed"
    assert await place.rows(marker) == [[run.batch.cluster, str(NOW_NS)]]
    columns = await place.rows(
        f"SELECT name FROM system.columns WHERE database = '{place.database}' AND table = 'redis_records_view'"
        " ORDER BY position"
    )
    assert len(columns) == 14


async def test_completing_a_batch_again_changes_nothing(place: Place, batches: Batches) -> None:
    # T31
    sink, run = await batches(place), a_run()
    await sink.write_chunk(a_chunk(run, 1, 10))
    for _ in range(2):
        await sink.finalize_batch(run.batch, {run.instance: (run, where(0, 11))})
    assert await place.count("import_batches_completed") == 1


async def test_a_complete_batch_refuses_a_second_run(place: Place, batches: Batches) -> None:
    # T29
    sink, run = await batches(place), a_run()
    await sink.open_batch(run)
    await sink.finalize_batch(run.batch, {run.instance: (run, where(0, 1))})
    with pytest.raises(BatchRefusedError, match=r"already complete.*another --batch-timestamp"):
        await sink.open_batch(a_run(n=2))
    await sink.open_batch(a_run(batch_ts=NOW_NS + 1, n=3))  # one nanosecond later is another batch (T30)


async def test_whether_a_batch_is_published_can_be_asked_without_making_anything(
    place: Place, batches: Batches
) -> None:
    run = a_run()
    with pytest.raises(SinkError):  # no tables
        await ClickHouseBatches(place.config()).published(run.batch)
    sink = await batches(place)
    assert not await ClickHouseBatches(place.config()).published(run.batch)
    await sink.finalize_batch(run.batch, {run.instance: (run, where(0, 1))})
    assert await ClickHouseBatches(place.config()).published(run.batch)
    assert not await ClickHouseBatches(place.config()).published(a_run(batch_ts=NOW_NS + 1).batch)


async def test_a_one_shot_of_a_published_batch_is_refused_before_a_broker_is_started(
    served: Place, batches: Batches, tmp_path: Path
) -> None:
    run = a_run()
    job = FeedJob(path="x", cluster=run.batch.cluster, instance="a:1", batch_ts=run.batch.batch_ts, instances=["a:1"])
    one = OneShot([job], {"CLICKHOUSE_URL": served.url}, 1)
    sink = await batches(served)
    await one._refuse_published()
    await OneShot([job], {"CLICKHOUSE_URL": "http://127.0.0.1:1?database=d"}, 1)._refuse_published()  # the worker's
    await sink.finalize_batch(run.batch, {run.instance: (run, where(0, 1))})
    with override_settings(data_dir=tmp_path), pytest.raises(AlreadyPublishedError, match="already: ClickHouse http:"):
        await one.run()
    assert await asyncio.to_thread(lambda: list(tmp_path.iterdir())) == []


async def test_a_later_run_voids_the_rows_of_an_earlier_one(place: Place, batches: Batches) -> None:
    # hole e: a feeder that could not be resumed starts a new run in the same topic
    sink, first, second, other = await batches(place), a_run(n=1), a_run(n=2), a_run("other:1", n=3)
    await sink.write_chunk(a_chunk(first, 1, 7))
    await sink.write_chunk(a_chunk(second, 10, 19))
    await sink.write_chunk(a_chunk(other, 1, 4, topic="rdb.records.c.o", topic_id="O" * 22))
    await sink.write_chunk(a_chunk(a_run("stranger:1", n=4), 1, 3, topic="rdb.records.c.s", topic_id="S" * 22))
    assert await sink.finalize_instance(second, where(9, 20)) == 10
    valid = {second.instance: (second, where(9, 20)), other.instance: (other, where(0, 5, topic_id="O" * 22))}
    await sink.finalize_batch(second.batch, valid)
    assert await sink.count_by_instance(second.batch) == {second.instance: 10, "other:1": 4}


async def test_nothing_is_deleted_where_no_run_was_voided(place: Place, batches: Batches) -> None:
    sink, run = await batches(place), a_run()
    await sink.write_chunk(a_chunk(run, 1, 10))
    failpoints.arm("clickhouse.finalize.after_delete=error")
    try:
        await sink.finalize_batch(run.batch, {run.instance: (run, where(0, 11))})
    finally:
        failpoints.arm("")
    mutations = f"SELECT count() FROM system.mutations WHERE database = '{place.database}'"
    assert int((await place.rows(mutations))[0][0]) == 0


async def test_an_instance_without_rows_completes_with_the_batch(place: Place, batches: Batches) -> None:
    # T27
    sink, run = await batches(place), a_run()
    await sink.open_batch(run)
    assert await sink.finalize_instance(run, where(0, 1)) == 0
    await sink.finalize_batch(run.batch, {run.instance: (run, where(0, 1))})
    assert await place.count("import_batches_completed") == 1
    assert await sink.count_by_instance(run.batch) == {}


@pytest.mark.parametrize(
    "name",
    ["clickhouse.finalize.after_delete", "clickhouse.finalize.before_marker", "clickhouse.finalize.after_marker"],
)
async def test_completion_that_fails_anywhere_is_finished_by_doing_it_again(
    place: Place, batches: Batches, name: str
) -> None:
    # T31, RU-17: voided rows first, the marker last
    sink, first, second = await batches(place), a_run(n=1), a_run(n=2)
    await sink.write_chunk(a_chunk(first, 1, 7))
    await sink.write_chunk(a_chunk(second, 10, 19))
    valid = {second.instance: (second, where(9, 20))}
    failpoints.arm(f"{name}=error")
    try:
        with pytest.raises(FailpointError):
            await sink.finalize_batch(second.batch, valid)
    finally:
        failpoints.arm("")
    shown = name.endswith("after_marker")
    assert await _view(place) == ({(second.batch.cluster, str(NOW_NS)): 10} if shown else {})
    await sink.finalize_batch(second.batch, valid)
    assert await _view(place) == {(second.batch.cluster, str(NOW_NS)): 10}
    assert await place.count("import_batches_completed") == 1


async def test_a_batch_older_than_the_ttl_is_refused_with_the_way_out(place: Place, batches: Batches) -> None:
    # T37
    sink = await batches(place)
    week = a_run(batch_ts=NOW_NS - 7 * DAY_NS)
    with pytest.raises(BatchRefusedError, match=r"7 days old.*TTL.*3 days.*--batch-timestamp.*MODIFY TTL.*37 DAY"):
        await sink.open_batch(week)
    with pytest.raises(BatchRefusedError, match="7 days old"):
        await sink.finalize_instance(week, where(0, 1))
    with pytest.raises(BatchRefusedError, match="7 days old"):
        await sink.finalize_batch(week.batch, {week.instance: (week, where(0, 1))})
    await sink.open_batch(a_run(batch_ts=NOW_NS - 2 * DAY_NS))
    with pytest.raises(BatchRefusedError, match="2106"):
        await sink.open_batch(a_run(batch_ts=2**32 * 1_000_000_000))


async def test_the_ttl_is_the_one_the_server_has(place: Place, batches: Batches) -> None:
    # T37: who follows the message's advice is served
    await batches(place)
    await place.run("ALTER TABLE {db}.redis_records_raw MODIFY TTL toDateTime(batch) + INTERVAL 37 DAY")
    await (await batches(place)).open_batch(a_run(batch_ts=NOW_NS - 7 * DAY_NS))
    await place.run("ALTER TABLE {db}.redis_records_raw REMOVE TTL")
    await (await batches(place)).open_batch(a_run(batch_ts=NOW_NS - 700 * DAY_NS))


async def test_the_view_shows_each_clusters_latest_batch_and_the_raw_table_every_one(
    place: Place, batches: Batches
) -> None:
    # T38: an older batch that completes later stays hidden in the view, and is still there by its name
    sink = await batches(place)
    old, new, other = a_run(batch_ts=NOW_NS - 5, n=1), a_run(n=2), a_run(cluster="乙", batch_ts=NOW_NS - 9, n=3)
    finished: list[tuple[Any, int]] = [(new, 20), (old, 0), (other, 40)]
    for run, first in finished:
        await sink.write_chunk(a_chunk(run, first + 1, first + 3, topic_id=run.run_id[:22]))
        valid = {run.instance: (run, where(first, first + 4, topic_id=run.run_id[:22]))}
        await sink.finalize_batch(run.batch, valid)
    assert set(await _view(place)) == {(new.batch.cluster, str(NOW_NS)), ("乙", str(NOW_NS - 9))}
    assert await sink.count_by_instance(old.batch) == {old.instance: 3}
    assert await sink.count_by_instance(new.batch) == {new.instance: 3}


async def test_an_aborted_run_stays_out_of_sight(place: Place, batches: Batches) -> None:
    # T28
    sink, run = await batches(place), a_run()
    await sink.write_chunk(a_chunk(run, 1, 10))
    await sink.abort_run(run)
    assert await _view(place) == {}
    await sink.open_batch(a_run(n=2))
