"""Counts by key into a table: `faust -A bench.apps.table worker`. With BENCH_OUT each new count goes to that topic."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa

from bench.apps.timing import timed_app

OUT = os.environ.get("BENCH_OUT")

app = timed_app()
topic = app.chunk_topic(os.environ["BENCH_TOPIC"], schema=pa.schema([("user", pa.string()), ("amount", pa.int64())]))
counts = app.Table("counts", default=int, partitions=4)
changed = app.topic(OUT or "unused", key_type=str, value_type=int, value_serializer="json", key_serializer="raw")


@app.agent(topic)
async def count(chunks: Any) -> None:
    """A read and a write of the table per record, as with stock Faust; the changelog gets one record per key."""
    async for chunk in chunks:
        users = chunk.table["user"].to_pylist()
        for user in users:
            counts[user] += 1
        if OUT:
            for user in set(users):
                await changed.send(key=user.encode(), value=counts[user])
