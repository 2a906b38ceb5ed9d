"""Arrow messages -> embedded ClickHouse, through the real worker: `faust -A bench.apps.clickhouse worker`."""

from __future__ import annotations

import os
from typing import Any

from bench.apps.timing import timed_app
from bench.clickhouse import TABLE, url
from bench.data import SCHEMA
from sinks.clickhouse import ClickHouseStream
from sinks.clickhouse.config import ClickHouseConfig

app = timed_app()
config = ClickHouseConfig.parse(url(os.environ["BENCH_SINK"]), auto_create_tables=True)
output = app.sinks(ClickHouseStream(config, TABLE))
topic = app.chunk_topic(os.environ["BENCH_TOPIC"], schema=SCHEMA, payload="arrow")


@app.agent(topic)
async def archive(chunks: Any) -> None:
    """Every chunk an insert."""
    async for chunk in chunks:
        await output.write(chunk)
