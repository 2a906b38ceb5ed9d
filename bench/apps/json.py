"""JSON or Arrow messages -> Parquet, through the real worker: `faust -A bench.apps.json worker`.

While the file BENCH_STOP exists the sink says that it cannot write now.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bench.apps.timing import timed_app
from bench.data import SCHEMA
from millstream.errors import RetryableSinkError
from schemas.chunk import Chunk, Receipt
from sinks.parquet import ParquetConfig, ParquetStream

STOP = os.environ.get("BENCH_STOP")


class Stoppable(ParquetStream):
    """A sink that can be out of order for a while."""

    async def write_chunk(self, chunk: Chunk) -> Receipt:
        """As ParquetStream, unless stopped."""
        if STOP and os.path.exists(STOP):  # noqa: ASYNC240, PTH110 - a look at a local file
            raise RetryableSinkError(f"{STOP} exists")
        return await super().write_chunk(chunk)


app = timed_app()
output = app.sinks(Stoppable(ParquetConfig(Path(os.environ["BENCH_SINK"]))))
topic = app.chunk_topic(os.environ["BENCH_TOPIC"], schema=SCHEMA, payload=os.environ.get("BENCH_PAYLOAD", "json"))


@app.agent(topic)
async def archive(chunks: Any) -> None:
    """Every chunk a file."""
    async for chunk in chunks:
        await output.write(chunk)
