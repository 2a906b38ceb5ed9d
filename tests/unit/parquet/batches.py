"""A run of two chunks for tests of batches, and what stands in the sink's directory."""

from __future__ import annotations

from schemas.batch import Run
from sinks.parquet import ParquetBatches
from tests.integration.parquet.data import BATCH, INSTANCE, RUN, between, chunk

LATER = Run(BATCH, INSTANCE, "b" * 32)
RUNS = {INSTANCE: (RUN, between(0, 7))}


async def write(sink: ParquetBatches, run: Run = RUN) -> None:
    """Open a run and write its two chunks, offsets 1 to 6 between begin 0 and done 7."""
    await sink.open_batch(run)
    await sink.write_chunk(chunk(1, 4, [b"b", b"a"], run))
    await sink.write_chunk(chunk(5, 6, [b"c"], run))


def files(sink: ParquetBatches) -> set[str]:
    return {str(p.relative_to(sink.config.dir)) for p in sink.config.dir.rglob("*") if p.is_file()}
