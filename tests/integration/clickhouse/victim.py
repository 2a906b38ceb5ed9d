"""A worker on embedded chdb that a test kills: `python -m …victim URL batch|chunks FIRST BATCH_TS`."""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext, suppress

from millstream.errors import AttemptExhaustedError, RunVoidError
from millstream.logs import configure
from millstream.settings import Settings
from schemas.batch import Run
from schemas.chunk import Chunk
from sinks.clickhouse import ClickHouseBatches, ClickHouseConfig
from tests.integration.clickhouse.data import a_chunk, a_run, where

CHUNK = 1_000
"""Rows of a chunk in mode `chunks`."""


async def exactly_once(sink: ClickHouseBatches, chunk: Chunk) -> None:
    """What engine and wrapper do with a chunk: ask on replay, write, raise the attempt where the sink wants it."""
    if chunk.replayed and await sink.have(chunk):
        return
    for attempt in range(3):
        try:
            await sink.write_chunk(chunk.at_attempt(attempt))
            return
        except AttemptExhaustedError:
            continue
    raise AssertionError(f"{chunk.id}: three attempts in vain")


async def whole_batch(sink: ClickHouseBatches, batch_ts: int, *, replayed: bool, generation: int) -> Run:
    """A voided run, a valid one, and the batch's completion."""
    voided, valid = a_run(n=1, batch_ts=batch_ts), a_run(n=2, batch_ts=batch_ts)
    with suppress(RunVoidError) if replayed else nullcontext():  # the batch may be closed already, without this run
        await exactly_once(sink, a_chunk(voided, 1, 7, replayed=replayed, generation=generation))
    for first in (10, 20):
        await exactly_once(sink, a_chunk(valid, first, first + 9, replayed=replayed, generation=generation))
    assert await sink.finalize_instance(valid, where(9, 30)) == 20
    await sink.finalize_batch(valid.batch, {valid.instance: (valid, where(9, 30))})
    return valid


async def main(url: str, mode: str, first: int, batch_ts: int) -> None:
    """Work until killed; in mode `chunks` print the first offset of each chunk that is written."""
    sink = ClickHouseBatches(ClickHouseConfig.parse(url, auto_create_tables=True))
    await sink.open()
    if mode == "batch":
        await whole_batch(sink, batch_ts, replayed=False, generation=1)
    replayed = True
    while mode == "chunks":
        await exactly_once(sink, a_chunk(a_run(batch_ts=batch_ts), first, first + CHUNK - 1, replayed=replayed))
        print(first, flush=True)
        first, replayed = first + CHUNK, False


if __name__ == "__main__":
    configure(Settings())  # logs go to standard error
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
