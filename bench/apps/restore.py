"""A table to restore, nothing else: the clock runs while the assignment is loaded."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa

from bench.clock import Clock
from millstream.settings import Settings
from streams.engine.app import App
from streams.engine.recovery import Recovery

clock = Clock.from_env()
_load = Recovery.load


def timed_load(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Loading, from the assignment to the tables being complete."""
    clock.start()
    loaded = _load(self, *args, **kwargs)
    clock.add(clock.total)
    return loaded


Recovery.load = timed_load  # type: ignore[method-assign]
app = App(Settings())
topic = app.chunk_topic(os.environ["BENCH_TOPIC"], schema=pa.schema([("user", pa.string())]))
counts = app.Table("counts", default=int, partitions=4)


@app.agent(topic, tables=[counts])
async def count(chunks: Any) -> None:
    """Never gets a record."""
    async for _chunk in chunks:
        raise RuntimeError("the topic is empty")
