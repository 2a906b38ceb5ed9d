"""Stock Faust, set for throughput: `faust -A bench.apps.stock worker`. BENCH_STOCK says what it does."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path
from typing import Any

import faust
import msgspec
import pyarrow as pa

from bench.clock import Clock
from bench.data import SCHEMA
from bench.loops import write

MODE = os.environ["BENCH_STOCK"]
clock = Clock.from_env()
app = faust.App(
    os.environ["MILLSTREAM_APP_ID"],
    broker=f"kafka://{os.environ['BENCH_SERVERS']}",
    store="rocksdb://",
    datadir=os.environ["MILLSTREAM_DATA_DIR"],
    topic_disable_leader=True,
    topic_partitions=4,
    topic_replication_factor=1,
    stream_wait_empty=False,
    broker_max_poll_records=10_000,
    consumer_auto_offset_reset="earliest",
    web_enabled=False,
)
topic = app.topic(os.environ["BENCH_TOPIC"], key_type=bytes, value_type=bytes, value_serializer="raw")


@app.on_partitions_assigned.connect
async def assigned(_app: Any, _partitions: Any, **_: Any) -> None:
    """It may fetch from now on."""
    clock.start()


if MODE == "parquet":
    out = Path(os.environ["BENCH_SINK"])
    numbers = itertools.count()

    def _write(values: list[bytes]) -> None:
        table = pa.Table.from_pylist([msgspec.json.decode(v) for v in values], SCHEMA)
        write(table, out / f"{next(numbers):06d}.parquet")

    @app.agent(topic)
    async def archive(stream: Any) -> None:
        """`take`, which acknowledges what it was given whether or not it was written."""
        async for values in stream.take(10_000, within=1):
            await asyncio.to_thread(_write, values)
            clock.add(len(values))

elif MODE == "count":
    counts = app.Table("counts", default=int, partitions=4, key_type=str, value_type=int)

    @app.agent(topic)
    async def count(stream: Any) -> None:
        """A read and a write of the table per record."""
        async for value in stream:
            counts[msgspec.json.decode(value)["user"]] += 1
            clock.add(1)

else:
    counts = app.Table("counts", default=int, partitions=4, key_type=str, value_type=int)

    @app.agent(topic)
    async def nothing(stream: Any) -> None:
        """Declares the table's partitions only."""
        async for _value in stream:
            counts["none"] += 0

    @app.task
    async def recovered(running: Any) -> None:
        """The clock stops when Faust says that all tables are complete."""
        await running.tables.recovery.completed.wait()
        clock.add(clock.total)
