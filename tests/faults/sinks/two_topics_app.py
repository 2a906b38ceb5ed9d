"""Two topics that share one of our tables and one ClickHouse table. `faust -A` this module.

As in tests/chaos/stream_app.py, outputs and table values carry a running count per key.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from millstream.settings import get_settings
from sinks.clickhouse import ClickHouseStream
from sinks.factory import clickhouse_config
from streams.engine.app import App

settings = get_settings()
app = App(settings)
schema = pa.schema([("id", pa.int64()), ("k", pa.string())])
one, two = (app.chunk_topic(f"{settings.app_id}-{n}-in", schema=schema, partitions=2) for n in ("one", "two"))
counts = app.Table("counts", default=int)
clickhouse = clickhouse_config(settings)
assert clickhouse is not None
sinks = app.sinks(ClickHouseStream(clickhouse, "events"))


async def _count(chunks: Any) -> None:
    async for chunk in chunks:
        for key in chunk.table.column("k").to_pylist():
            counts[key] += 1
        await sinks.write(chunk)


@app.agent(one, tables=[counts])
async def first(chunks: Any) -> None:
    """Of the first topic."""
    await _count(chunks)


@app.agent(two, tables=[counts])
async def second(chunks: Any) -> None:
    """Of the second topic."""
    await _count(chunks)
