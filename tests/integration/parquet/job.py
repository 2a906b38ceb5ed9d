"""A batch's steps in a process of its own, so that a test may kill or pause it.

Like a worker, it puts each finished step on record and starts at the first unfinished one. Exit code 3: the sink
refused a step, as it must refuse a worker that slept through the publication.
"""

import asyncio
import sys
from pathlib import Path

from millstream.errors import MillstreamError
from millstream.failpoints import arm
from schemas.batch import Run
from sinks.parquet import ParquetBatches, ParquetConfig
from tests.integration.parquet.data import BATCH, INSTANCE, between, chunk

VOID = Run(BATCH, INSTANCE, "a" * 32)
FULL = Run(BATCH, INSTANCE, "b" * 32)
EMPTY = Run(BATCH, "[::1]:6379", "c" * 32)
RUNS = {FULL.instance: (FULL, between(4, 8)), EMPTY.instance: (EMPTY, between(0, 1))}
VOIDED = chunk(2, 3, [b"void"], VOID)
CHUNKS = [chunk(5, 5, [b"d", b"a"], FULL), chunk(6, 6, [], FULL), chunk(7, 7, [b"c", b"b", b"\xff"], FULL)]


async def main(directory: Path, progress: Path, sort: bool, until: int) -> None:
    """Run the steps from the first unfinished one to `until`."""
    sink = ParquetBatches(ParquetConfig(directory, sort=sort))

    async def write(number: int) -> None:
        one = [VOIDED, *CHUNKS][number]
        receipt = await sink.have(one) or await sink.write_chunk(one)
        assert receipt.rows == one.rows

    async def finalize(run: Run, rows: int) -> None:
        assert await sink.finalize_instance(run, RUNS[run.instance][1]) == rows

    steps = [
        sink.open,
        lambda: sink.open_batch(VOID),
        lambda: write(0),
        lambda: sink.open_batch(EMPTY),
        lambda: sink.open_batch(FULL),
        lambda: write(1),
        lambda: write(2),
        lambda: write(3),
        lambda: finalize(EMPTY, 0),
        lambda: finalize(FULL, 5),
        lambda: sink.finalize_batch(BATCH, RUNS),
    ]
    for number in range(read(progress), min(until, len(steps))):
        await steps[number]()
        record(progress, number + 1)


def read(progress: Path) -> int:
    """Steps on record."""
    return int(progress.read_text()) if progress.exists() else 0


def record(progress: Path, done: int) -> None:
    """Put a step on record at one stroke."""
    progress.with_suffix(".new").write_text(str(done))
    progress.with_suffix(".new").rename(progress)


def life(directory: Path, progress: Path, failpoints: str, seed: int, sort: bool, until: int) -> None:
    """One life of a worker, in a process of its own. What the sink refused stands in `<progress>.error`."""
    arm(failpoints, seed)
    try:
        asyncio.run(main(directory, progress, sort, until))
    except MillstreamError as e:
        progress.with_suffix(".error").write_text(f"{type(e).__name__}: {e}")
        sys.exit(3)
