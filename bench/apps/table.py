"""Counts by key into a table: `faust -A bench.apps.table worker`."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa

from bench.apps.timing import timed_app

app, clock = timed_app()
topic = app.chunk_topic(os.environ["BENCH_TOPIC"], schema=pa.schema([("user", pa.string()), ("amount", pa.int64())]))
counts = app.Table("counts", default=int, partitions=4)


@app.agent(topic)
async def count(chunks: Any) -> None:
    """A read and a write of the table per record, as with stock Faust; the changelog gets one record per key."""
    async for chunk in chunks:
        for user in chunk.table["user"].to_pylist():
            counts[user] += 1
        clock.add(chunk.rows)
