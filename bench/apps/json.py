"""One JSON record per message -> Parquet, through the real worker: `faust -A bench.apps.json worker`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bench.apps.timing import timed_app
from bench.data import SCHEMA
from sinks.parquet import ParquetConfig, ParquetStream

app, clock = timed_app()
output = app.sinks(ParquetStream(ParquetConfig(Path(os.environ["BENCH_SINK"]))))
topic = app.chunk_topic(os.environ["BENCH_TOPIC"], schema=SCHEMA, payload=os.environ.get("BENCH_PAYLOAD", "json"))


@app.agent(topic)
async def archive(chunks: Any) -> None:
    """Every chunk a file."""
    async for chunk in chunks:
        await output.write(chunk)
        clock.add(chunk.rows)
