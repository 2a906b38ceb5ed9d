"""The generic stream under attack: chunk agent, table, output topic, Parquet and ClickHouse. `faust -A` this module.

Each output record and each table value carries a running count per key, so a chunk that saw a stale table shows.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pyarrow as pa

from millstream.settings import get_settings
from sinks.clickhouse import ClickHouseStream
from sinks.factory import clickhouse_config
from sinks.parquet import ParquetConfig, ParquetStream
from streams.engine.app import App
from tests.chaos import failpoints


def mute(name: str) -> None:
    """CHAOS_MUTE names a failpoint: once there, this worker says nothing more to its group, and does not rejoin."""
    if name == os.environ.get("CHAOS_MUTE"):
        silent = threading.Event()

        def hold() -> None:
            silent.set()
            time.sleep(600)

        app._consumer._thread.thread_loop.call_soon_threadsafe(hold)
        silent.wait()


settings = get_settings()
failpoints.tell_full_transactions(mute)
if control := os.environ.get("CHAOS_CONTROL"):
    from tests.chaos import controls

    controls.CONTROLS[control]()

app = App(settings)
partitions = int(os.environ.get("CHAOS_PARTITIONS", "4"))
source = app.chunk_topic(
    f"{settings.app_id}-in", schema=pa.schema([("id", pa.int64()), ("k", pa.string())]), partitions=partitions
)
out = app.topic(f"{settings.app_id}-out", value_serializer="json", partitions=partitions)
counts = app.Table("counts", default=int)
targets: list[Any] = [ParquetStream(ParquetConfig(settings.parquet_dir))] if settings.parquet_dir else []
if (clickhouse := clickhouse_config(settings)) is not None:
    targets.append(ClickHouseStream(clickhouse, "events"))
sinks = app.sinks(*targets)


@app.agent(source)
async def count(chunks: Any) -> None:
    """Count records by key, pass them on, write them down."""
    async for chunk in chunks:
        for row in chunk.table.to_pylist():
            counts[row["k"]] += 1
            value = {"p": chunk.partition, "o": row["_offset"], "id": row["id"], "k": row["k"], "n": counts[row["k"]]}
            await out.send(key=row["k"], value=value)
        await sinks.write(chunk)
