"""A new run of an instance that begins while its batch is being published: all of it is refused, none of it shows.

The marker alone cannot keep it out: a worker looks at a run once, and an insert that looked before the marker may end
behind it. So a batch is closed first, by a record that every insert of a batch asks for.
"""

from __future__ import annotations

import asyncio

import pytest

from millstream import failpoints
from millstream.errors import BatchRefusedError, RetryableSinkError, RunVoidError
from millstream.failpoints import FailpointError
from tests.integration.clickhouse.conftest import Batches, Place
from tests.integration.clickhouse.data import a_chunk, a_run, where
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.waiting import until

FIRST, SECOND = a_run(n=1), a_run(n=2)
VALID = {FIRST.instance: (FIRST, where(0, 11))}
ELSEWHERE = {"topic": "rdb.records.c.i2", "topic_id": "B" * 22}


async def _shown(place: Place) -> int:
    return await place.count("redis_records_view")


async def _interrupted(sink: object, point: str) -> None:
    failpoints.arm(f"{point}=error")
    try:
        with pytest.raises(FailpointError):
            await sink.finalize_batch(FIRST.batch, VALID)  # type: ignore[attr-defined]
    finally:
        failpoints.arm("")


@pytest.mark.parametrize("point", ["clickhouse.finalize.before_marker", "clickhouse.finalize.after_marker"])
async def test_rows_of_a_run_that_was_open_before_its_batch_was_published_are_refused_afterwards(
    place: Place, batches: Batches, point: str
) -> None:
    # the case of docs/proof.md: the worker looked at the run while the batch was open, its rows come during or after
    # the publication
    coordinator, writer = await batches(place), await batches(place)
    await writer.write_chunk(a_chunk(FIRST, 1, 10))
    await writer.open_batch(SECOND)
    await writer.write_chunk(a_chunk(SECOND, 12, 15))
    await _interrupted(coordinator, point)
    with pytest.raises(RunVoidError, match=r"batch .* is closed.*another --batch-timestamp"):
        await writer.write_chunk(a_chunk(SECOND, 16, 25))
    with pytest.raises(BatchRefusedError, match=r"batch .* --batch-timestamp"):
        await (await batches(place)).open_batch(a_run(n=3))
    await coordinator.finalize_batch(FIRST.batch, VALID)
    with pytest.raises(RunVoidError):
        await writer.write_chunk(a_chunk(SECOND, 26, 30))
    assert await _shown(place) == 10
    assert await place.count() == 10
    # the valid run's chunks are still known, as a successor must find them
    replay = a_chunk(FIRST, 1, 10, replayed=True, generation=2)
    assert (await writer.have(replay)) is not None


async def test_an_insert_of_a_late_run_that_arrives_after_the_marker_writes_nothing(
    served: Place, server: ClickHouseServer, batches: Batches
) -> None:
    coordinator, writer = await batches(served), await batches(served)
    await writer.write_chunk(a_chunk(FIRST, 1, 10))
    await writer.open_batch(SECOND)
    server.fault("hang")
    late = asyncio.create_task(writer.write_chunk(a_chunk(SECOND, 12, 21, **ELSEWHERE)))
    await until(lambda: server.hanging() == 1, 5, "the insert to be on its way")
    await coordinator.finalize_batch(FIRST.batch, VALID)
    assert await _shown(served) == 10
    server.release()
    with pytest.raises(RunVoidError, match="is closed"):
        await late
    assert await _shown(served) == 10


async def test_an_insert_of_a_late_run_that_is_running_while_its_batch_is_closed_is_ended_first(
    served: Place, server: ClickHouseServer, batches: Batches
) -> None:
    # it has looked already: only ending it, after closing and before deleting, keeps its rows out
    coordinator, writer = await batches(served), await batches(served)
    await writer.write_chunk(a_chunk(FIRST, 1, 10))
    await writer.open_batch(SECOND)
    server.fault("hang_running")
    late = asyncio.create_task(writer.write_chunk(a_chunk(SECOND, 12, 21, **ELSEWHERE)))
    await until(lambda: server.hanging() == 1, 5, "the insert to run")
    other = a_run(batch_ts=FIRST.batch.batch_ts + 1, n=9)
    server.fault("hang_running")
    bystander = asyncio.create_task(writer.write_chunk(a_chunk(other, 30, 39)))
    await until(lambda: server.hanging() == 2, 5, "an insert of another batch to run")
    await coordinator.finalize_batch(FIRST.batch, VALID)
    with pytest.raises(RetryableSinkError, match="394"):
        await late
    with pytest.raises(RunVoidError, match="is closed"):
        await writer.write_chunk(a_chunk(SECOND, 12, 21, **ELSEWHERE))
    assert await _shown(served) == 10
    assert server.hanging() == 1  # another batch's insert is left alone
    server.release()
    assert (await bystander).rows == 10


async def test_a_closed_batch_is_published_with_the_runs_it_was_closed_with_and_no_others(
    place: Place, batches: Batches
) -> None:
    # a coordinator with other runs would delete the rows of the first one's
    sink = await batches(place)
    await sink.write_chunk(a_chunk(FIRST, 1, 10))
    await _interrupted(sink, "clickhouse.finalize.closed")
    with pytest.raises(BatchRefusedError, match="closed with other runs"):
        await sink.finalize_batch(FIRST.batch, {SECOND.instance: (SECOND, where(11, 20))})
    assert await place.count() == 10
    await sink.finalize_batch(FIRST.batch, VALID)
    assert await _shown(place) == 10


async def test_a_server_that_does_not_tell_the_written_rows_refuses_a_late_run_too(
    served: Place, server: ClickHouseServer, batches: Batches
) -> None:
    coordinator, writer = await batches(served), await batches(served)
    await writer.write_chunk(a_chunk(FIRST, 1, 10))
    await coordinator.finalize_batch(FIRST.batch, VALID)
    server.fault("quiet")
    with pytest.raises(RunVoidError, match="is closed"):
        await writer.write_chunk(a_chunk(SECOND, 12, 21))
    assert await _shown(served) == 10
