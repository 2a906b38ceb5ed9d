"""The generic stream under attack: chunk agent, table, output topic, Parquet and ClickHouse. `faust -A` this module.

Each output record and each table value carries a running count per key, so a chunk that saw a stale table shows.
CHAOS_KINDS names the kinds of output that there are, CHAOS_PAYLOAD what the messages are.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from typing import Any

from millstream.settings import get_settings
from sinks.clickhouse import ClickHouseStream
from sinks.factory import clickhouse_config
from sinks.parquet import ParquetConfig, ParquetStream
from streams.engine.app import App
from tests.chaos import failpoints
from tests.chaos.feeding import SCHEMA


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


async def kill_broker() -> None:
    """CHAOS_BROKER_PID: the broker dies when everything is prepared and the group is about to be joined."""
    os.kill(int(os.environ["CHAOS_BROKER_PID"]), signal.SIGKILL)


app = App(settings)
if "CHAOS_BROKER_PID" in os.environ:
    app.before_start.append(kill_broker)
kinds = os.environ.get("CHAOS_KINDS", "parquet,clickhouse,table,topic").split(",")
partitions = int(os.environ.get("CHAOS_PARTITIONS", "4"))
source = app.chunk_topic(
    f"{settings.app_id}-in",
    schema=SCHEMA,
    payload=os.environ.get("CHAOS_PAYLOAD", "json"),
    partitions=partitions,
)
out = app.topic(f"{settings.app_id}-out", value_serializer="json", partitions=partitions)
counts: Any = app.Table("counts", default=int) if "table" in kinds else Counter()
targets: list[Any] = []
if settings.parquet_dir is not None:
    targets.append(ParquetStream(ParquetConfig(settings.parquet_dir)))
if (clickhouse := clickhouse_config(settings)) is not None:
    targets.append(ClickHouseStream(clickhouse, "events"))
sinks = app.sinks(*targets)


@app.agent(source)
async def count(chunks: Any) -> None:
    """Count records by key, pass them on, write them down."""
    async for chunk in chunks:
        for row in chunk.table.to_pylist():
            key = row["k"]
            counts[key] += "table" in kinds
            if "topic" in kinds:
                value = {"p": chunk.partition, "o": row["_offset"], "id": row["id"], "k": key, "n": counts[key]}
                await out.send(key=key, value=value)
        await sinks.write(chunk)
