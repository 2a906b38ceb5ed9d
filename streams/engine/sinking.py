"""What an agent writes to: the sink wrapper, joined to the chunk's attempt."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from schemas.batch import Run
from schemas.chunk import Chunk as SinkChunk
from schemas.chunk import Receipt
from sinks.base import Sink
from sinks.wrapper import SinkGroup
from streams.engine.chunk import Chunk


class Sinks(SinkGroup):
    """The sinks of a stream. `await sinks.write(chunk)` returns when all of them hold the chunk."""

    def __init__(self, sinks: Iterable[Sink], retry_timeout: float | None) -> None:
        super().__init__(list(sinks), retry_timeout=retry_timeout)

    async def write(self, chunk: Chunk, table: pa.Table | None = None, run: Run | None = None) -> list[Receipt]:  # type: ignore[override]
        """Write the chunk's rows, or `table` made from them (rule 13: by the chunk alone), under its identity."""
        part = chunk.for_sink(table, run)
        if not part.rows and run is None:
            return []  # a run's part is written even when empty: its ranges must leave no gap

        async def raise_attempt() -> SinkChunk:
            return part.at_attempt(await chunk.raise_attempt())

        return await super().write(part, raise_attempt)
