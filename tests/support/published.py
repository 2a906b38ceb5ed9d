"""Publishing batches through the real sinks, without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from schemas.batch import Batch, Run
from schemas.chunk import Chunk, ChunkId
from schemas.records import ENCODINGS, TYPES, WIRE
from sinks.base import BatchSink, InstanceRange
from sinks.clickhouse import ClickHouseBatches, ClickHouseConfig
from sinks.parquet import ParquetBatches, ParquetConfig

Row = dict[str, Any]
ROW: Row = {
    "db": 0, "key": b"k", "type": "string", "member_count": 1, "rdb_size": 7, "encoding": "raw", "expire_at_ms": None,
    "idle_seconds": None, "freq": None, "codis_slot": None, "redis_slot": None,
}  # fmt: skip
_WORDS = {"type": TYPES, "encoding": ENCODINGS}


def wire(rows: Sequence[Row]) -> pa.Table:
    """Rows (missing fields as in ROW) of schema WIRE."""
    full = [ROW | row for row in rows]
    columns = []
    for field in WIRE:
        values = [row[field.name] for row in full]
        if words := _WORDS.get(field.name):
            indexes = pa.array([words.index(v) for v in values], pa.int8())
            columns.append(pa.DictionaryArray.from_arrays(indexes, pa.array(words)))
        else:
            columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=WIRE)


async def publish(sink: BatchSink, batch: Batch, instances: Mapping[str, pa.Table], rows: int = 50_000) -> None:
    """Publish a batch of WIRE rows by instance through an open sink, in chunks of so many rows."""
    runs = {}
    for number, (instance, given) in enumerate(instances.items()):
        run = Run(batch, instance, f"{number + 1:032x}")
        log = {"topic": f"t{number}", "topic_id": f"{batch.batch_ts:019d}{number:03d}", "epoch": 0}
        await sink.open_batch(run)
        table = given.append_column("_offset", pa.array(range(1, given.num_rows + 1), pa.int64()))
        for first in range(1, table.num_rows + 1, rows):
            part = table.slice(first - 1, rows)
            last = first + part.num_rows - 1
            await sink.write_chunk(Chunk(ChunkId(**log, partition=0, first=first, last=last, generation=1), part, run))
        where = InstanceRange(log["topic_id"], 0, 0, 0, table.num_rows + 1, exclusive=True)
        await sink.finalize_instance(run, where)
        runs[instance] = (run, where)
    await sink.finalize_batch(batch, runs)


def publish_parquet(directory: Path, batches: Mapping[Batch, Mapping[str, pa.Table]], **options: Any) -> None:
    """Publish batches as Parquet files; blocking."""
    asyncio.run(_publish(ParquetBatches(ParquetConfig(directory, **options)), batches))


def publish_clickhouse(url: str, batches: Mapping[Batch, Mapping[str, pa.Table]]) -> None:
    """Publish batches to ClickHouse; blocking. The database must be there."""
    asyncio.run(_publish(ClickHouseBatches(ClickHouseConfig.parse(url, auto_create_tables=True)), batches))


async def _publish(sink: BatchSink, batches: Mapping[Batch, Mapping[str, pa.Table]]) -> None:
    await sink.open()
    try:
        for batch, instances in batches.items():
            await publish(sink, batch, instances)
    finally:
        await sink.close()
