"""What the observer says of a worker: states, lag, why it is not ready."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from prometheus_client import REGISTRY

from millstream import metrics
from millstream.cluster import TP
from millstream.errors import RetryableSinkError
from millstream.threads import in_thread
from schemas.chunk import Chunk, ChunkId
from streams.engine.recovery import Progress
from tests.support.waiting import until
from tests.unit.web.worker import Looked

A, B = TP("orders", 0), TP("orders", 1)


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def reasons(worker: Looked) -> list[str]:
    return [r.reason for r in worker.observer.not_ready()]


def test_each_partition_has_its_state_lag_and_chunk() -> None:
    worker = Looked(A, B)
    worker.read(A, 50, 120)
    worker.open(A, 2)
    worker.read(A, 5, 1)
    a, b = worker.observer.partitions()
    assert (a.state, b.state) == ("writing", "reading")
    assert (a.offset, a.end, a.lag, a.buffered) == (10, 65, 55, 5)
    assert 119 <= a.lag_seconds <= 130  # the oldest record not committed is in the open chunk
    assert a.chunk is not None
    assert (a.chunk["first"], a.chunk["last"], a.chunk["records"]) == (10, 59, 50)
    assert (b.lag, b.lag_seconds, b.chunk) == (0, 0.0, None)
    worker.task(A).open[1].finished()  # type: ignore[index]
    assert worker.observer.partitions()[0].state == "written"
    worker.task(B).parked.add(B)
    assert worker.observer.partitions()[1].state == "parked"


def test_markers_of_transactions_behind_the_position_are_no_lag() -> None:
    worker = Looked(A)
    worker.observer._ends[A] = 12
    assert worker.observer.partitions()[0].lag == 2
    worker.observer._fetched[A] = 12  # the fetcher has gone over them and there was nothing to hand over
    assert worker.observer.partitions()[0].lag == 0


def test_a_lag_of_records_not_read_yet_ages_from_when_the_position_stood_still() -> None:
    worker = Looked(A)
    worker.observer._ends[A] = 100
    assert worker.observer.partitions()[0].lag_seconds == pytest.approx(0, abs=1)
    offset, since = worker.observer._behind[A]
    worker.observer._behind[A] = offset, since - 60
    assert worker.observer.partitions()[0].lag_seconds == pytest.approx(60, abs=1)


def test_gauges_have_partition_numbers_only_for_a_stream_with_one_topic() -> None:  # T23
    several = [TP("rdb.records.prod.a-1", 0), TP("rdb.records.prod.b-1", 0)]
    worker = Looked(A, B, *several)
    worker.read(A, 7, 1)
    worker.read(several[0], 3, 5)
    worker.read(several[1], 4, 50)
    worker.observer.refresh()
    assert value("millstream_partition_lag_records", stream="orders", partition="0") == 7
    assert value("millstream_partition_lag_records", stream="orders", partition="1") == 0
    assert value("millstream_lag_records", stream="rdb.records") == 7
    assert value("millstream_lag_seconds", stream="rdb.records") == pytest.approx(50, abs=5)
    told = [s for m in (metrics.PARTITION_LAG_RECORDS, metrics.LAG_RECORDS) for f in m.collect() for s in f.samples]
    assert "rdb.records" not in {s.labels["stream"] for s in told if "partition" in s.labels}
    assert not any("prod" in label for s in told for label in s.labels.values())
    assert value("millstream_partitions", stream="rdb.records", state="reading") == 2
    worker.tasks.clear()  # all taken away: a partition's series ends, a stream's is 0
    worker.observer.refresh()
    assert value("millstream_partition_lag_records", stream="orders", partition="0") is None
    assert value("millstream_lag_records", stream="rdb.records") == 0
    assert value("millstream_assigned_partitions", stream="orders") == 0


def test_a_stream_with_very_many_partitions_has_no_numbers_either() -> None:  # T23
    worker = Looked(*(TP("wide", n) for n in range(metrics.PARTITION_SERIES + 1)))
    worker.observer.refresh()
    assert value("millstream_assigned_partitions", stream="wide") == metrics.PARTITION_SERIES + 1
    assert value("millstream_partition_lag_records", stream="wide", partition="0") is None


def test_a_worker_is_ready_when_its_assignment_is_loaded_and_not_before() -> None:
    worker = Looked(A)
    consumer = worker._consumer
    assert reasons(worker) == []
    consumer.cycle.member = None
    worker.recovery.progress = {TP("c", 0): Progress("totals", 100, 5100)}
    (reason,) = worker.observer.not_ready()
    assert reason == ("restoring", "5,000 changelog records of totals are left to be loaded")
    consumer.assigned = None
    assert reasons(worker) == ["restoring"]
    consumer.lost_since = time.monotonic() - 3
    assert reasons(worker) == ["fenced"]
    consumer.cycle.epoch, consumer.lost_since = 0, None
    assert reasons(worker) == ["starting"]
    worker.should_stop = True
    assert reasons(worker) == ["stopping"]


def test_a_worker_without_partitions_is_ready() -> None:
    worker = Looked()
    worker._consumer.cycle.member = None  # Faust loads nothing for an empty assignment
    assert reasons(worker) == []


def test_a_chunk_that_stands_still_and_a_parked_partition_are_named() -> None:
    worker = Looked(A, B, ready_stalled=5)
    worker.read(A, 3, 0)
    worker.open(A, 6)
    worker.task(B).parked.add(B)
    stalled, parked = worker.observer.not_ready()
    assert (stalled.reason, parked.reason) == ("stalled", "parked")
    assert "orders-0 at offset 10: writing for 6 s" in stalled.text
    assert "orders-1" in parked.text
    worker.observer.refresh()
    assert value("millstream_ready") == 0
    assert [r for r in metrics.REASONS if value("millstream_not_ready", reason=r)] == ["stalled", "parked"]


def test_a_loop_that_stands_still_is_not_live() -> None:
    worker = Looked(A, session_timeout=6, rebalance_timeout=10, heartbeat_interval=1)
    consumer = worker._consumer
    assert worker.observer.not_live() == ""
    consumer.looked -= 20
    assert "reads from Kafka has stood still" in worker.observer.not_live()
    consumer.flow_active = False  # during a rebalance nobody reads
    assert worker.observer.not_live() == ""
    consumer.attended -= 20
    assert "has not answered for" in worker.observer.not_live()
    assert reasons(worker) == ["stalled"]


class Failing:
    """A sink that fails until it is told not to."""

    name = "flaky"

    def __init__(self) -> None:
        self.mended = asyncio.Event()

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def have(self, chunk: Chunk) -> None: ...

    async def write_chunk(self, chunk: Chunk) -> Any:
        from schemas.chunk import Receipt

        if not self.mended.is_set():
            raise RetryableSinkError("disk of http://me:secret@host is away")
        return Receipt(self.name, 1)


async def test_a_sink_that_keeps_failing_makes_the_worker_not_ready_and_shows_its_last_error() -> None:
    import pyarrow as pa

    sink = Failing()
    worker = Looked(A, sinks=[sink], ready_sink_failing=0.01)
    (group,) = worker.sink_groups
    chunk = Chunk(ChunkId("orders", "id", 1, 0, 10, 12), pa.table({"_offset": [10]}))
    writing = asyncio.create_task(group.write(chunk))
    await until(lambda: group.failing()["flaky"] > 0.01, 5, "the sink to have failed for a moment")
    worker.read(A, 3, 0)
    worker.open(A, 1)
    assert worker.observer.partitions()[0].state == "retrying"
    (reason,) = worker.observer.not_ready()
    assert reason.reason == "sink"
    assert "disk of http://me:***@host is away" in reason.text
    worker.observer.refresh()
    assert (value("millstream_sink_failing_seconds", sink="flaky") or 0) > 0.01
    assert value("millstream_sink_calls", sink="flaky") == 1
    (told,) = worker.observer.sinks()
    assert (told["last_error"]["operation"], told["last_error"]["topic"]) == ("write_chunk", "orders")
    sink.mended.set()
    await writing
    worker.observer.refresh()
    assert (value("millstream_sink_failing_seconds", sink="flaky"), value("millstream_sink_calls", sink="flaky")) == (
        0,
        0,
    )
    assert reasons(worker) == []
    assert worker.observer.sinks()[0]["last_error"] is not None  # it stays to be looked at


async def test_a_look_that_hangs_holds_nobody_and_an_error_is_handed_on() -> None:
    import threading

    release = threading.Event()
    hanging = asyncio.create_task(in_thread(release.wait))
    await asyncio.sleep(0)
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    release.set()
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0)
