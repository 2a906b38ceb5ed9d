"""CPU and memory of the Parquet batch sink: parts of 50k rows, merged into one file, sorted and not.

    python bench/parquet_merge.py [--rows 10000000] [--sort] [--dir /tmp/parquet-bench]

Prints microseconds of CPU (user + system, all threads) per row of each phase, and resident memory above the start.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import shutil
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.batch import Batch, Run
from schemas.chunk import Chunk, ChunkId
from schemas.records import ENCODINGS, TYPES
from sinks.base import InstanceRange
from sinks.parquet import ParquetBatches, ParquetConfig

PREFIXES = [b"user:profile:", b"session:data:", b"cart:items:", b"prod:detail:v2:"]


def rows(count: int, seed: int) -> pa.Table:
    """Mixed keys of about 25 bytes in random order, as a Redis hash table yields them."""
    r = random.Random(seed)
    word = pa.int8()
    keys = [PREFIXES[i & 3] + b"%012d" % (i >> 2) for i in r.choices(range(1 << 38), k=count)]
    numbers = r.choices(range(5), k=count)
    return pa.table(
        {
            "db": pa.repeat(pa.scalar(0), count),
            "key": pa.array(keys, pa.binary()),
            "type": pa.DictionaryArray.from_arrays(pa.array(numbers, word), pa.array(TYPES)),
            "member_count": pa.array([int(r.paretovariate(1)) for _ in range(count)]),
            "rdb_size": pa.array(r.choices(range(30, 3000), k=count)),
            "encoding": pa.DictionaryArray.from_arrays(pa.array(numbers, word), pa.array(ENCODINGS)),
            "expire_at_ms": pa.array(
                [None if n else 1691999696123 + k[-1] for n, k in zip(numbers, keys, strict=True)]
            ),
            "idle_seconds": pa.nulls(count, pa.int64()),
            "freq": pa.nulls(count, pa.int32()),
            "codis_slot": pa.nulls(count, pa.int32()),
            "redis_slot": pa.array(r.choices(range(16384), k=count), pa.int32()),
            "_offset": pa.array(range(count)),
        }
    )


def cpu() -> float:
    """CPU seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident() -> float:
    """Resident memory now, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


class Peak(threading.Thread):
    """Highest resident memory while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest, self.ended = 0.0, threading.Event()

    def run(self) -> None:
        """Sample every 5 ms."""
        while not self.ended.wait(0.005):
            self.highest = max(self.highest, resident())


async def main() -> None:
    """Run one bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--chunk", type=int, default=50_000)
    parser.add_argument("--sort", action="store_true")
    parser.add_argument("--compression", default="zstd")
    parser.add_argument("--dir", type=Path, default=Path("/tmp/parquet-bench"))
    args = parser.parse_args()
    shutil.rmtree(args.dir, ignore_errors=True)
    pa.set_cpu_count(1)
    sink = ParquetBatches(ParquetConfig(args.dir, args.compression, args.sort))
    run = Run(Batch("prod", 1691999696123456789), "127.0.0.1:6379", "0" * 32)
    await sink.open()
    await sink.open_batch(run)
    count, at, spent, wall = args.rows // args.chunk, 1, 0.0, 0.0
    for number in range(count):
        records = rows(args.chunk, number)
        chunk = Chunk(ChunkId("t", "id", 0, 0, at, at + 9), records, run)
        at += 10
        before, started = cpu(), time.perf_counter()
        await sink.write_chunk(chunk)
        spent, wall = spent + cpu() - before, wall + time.perf_counter() - started
    total = count * args.chunk
    size = sum(p.stat().st_size for p in args.dir.rglob("*.arrow"))
    print(
        f"parts  {spent / total * 1e6:.3f} us CPU/row  {wall / total * 1e6:.3f} us wall/row  {size / total:.1f} B/row"
    )
    del records, chunk
    pa.default_memory_pool().release_unused()
    base, peak = resident(), Peak()
    peak.start()
    where = InstanceRange("id", 0, 0, 0, at, True)
    before, started = cpu(), time.perf_counter()
    assert await sink.finalize_instance(run, where) == total
    await sink.finalize_batch(run.batch, {run.instance: (run, where)})
    merged, wall = cpu() - before, time.perf_counter() - started
    peak.ended.set()
    file = next(args.dir.glob("prod/*/*.parquet"))
    print(
        f"merge  {merged / total * 1e6:.3f} us CPU/row  {wall / total * 1e6:.3f} us wall/row  "
        f"{file.stat().st_size / total:.1f} B/row  {pq.read_metadata(file).num_row_groups} row groups  "
        f"memory +{peak.highest - base:.0f} MB above {base:.0f} MB"
    )
    print(f"total  {(spent + merged) / total * 1e6:.3f} us CPU/row")


if __name__ == "__main__":
    asyncio.run(main())
