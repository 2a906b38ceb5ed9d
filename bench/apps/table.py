"""Counts by key into a table: `faust -A bench.apps.table worker`. With BENCH_OUT each new count goes to that topic."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa

from bench.apps.timing import timed_app

OUT = os.environ.get("BENCH_OUT")
BY_COLUMN = os.environ.get("BENCH_TABLE") == "columns"

app = timed_app()
topic = app.chunk_topic(os.environ["BENCH_TOPIC"], schema=pa.schema([("user", pa.string()), ("amount", pa.int64())]))
counts = app.Table("counts", default=int, partitions=4)


@app.agent(topic)
async def count(chunks: Any) -> None:
    """A read and a write of the table per record, as with stock Faust, or by column (BENCH_TABLE=columns).

    Either way the changelog gets one record per key and chunk.
    """
    async for chunk in chunks:
        users = chunk.table["user"]
        if BY_COLUMN:
            await counts.add(users)
        else:
            for user in users.to_pylist():
                counts[user] += 1
        if OUT:
            distinct = users.unique()
            values = await counts.get_many(distinct)
            await chunk.send_columns(OUT, distinct, pa.array(values).cast(pa.string()))
