"""What one would write by hand: consume, decode, write Parquet, fsync. No group, no commit, no restart.

python -m bench.loops structs|arrow|writer
"""

from __future__ import annotations

import itertools
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import msgspec
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from bench.clock import Clock
from bench.data import PARTITIONS, SCHEMA, arrow_batches

CHUNK_ROWS = 50_000
OFFSETS = pa.schema([("_partition", pa.int32()), ("_offset", pa.int64())])


class Record(msgspec.Struct, gc=False):
    """A record as a msgspec user declares it."""

    id: int
    instance: str
    ts: int
    price: float
    qty: int
    side: str
    symbol: str
    venue: str
    src: str


_decoder = msgspec.json.Decoder(Record)
_COLUMNS = Record.__struct_fields__


def with_structs(values: list[bytes]) -> pa.Table:
    """Each message into a struct, the structs into columns."""
    rows = [_decoder.decode(v) for v in values]
    return pa.table({c: [getattr(r, c) for r in rows] for c in _COLUMNS}, schema=SCHEMA)


def with_arrow(values: list[bytes]) -> pa.Table:
    """All messages of a chunk in one call."""
    text = b"\n".join(values)
    return pj.read_json(
        pa.BufferReader(text),
        read_options=pj.ReadOptions(use_threads=False, block_size=len(text) + 1),
        parse_options=pj.ParseOptions(explicit_schema=SCHEMA),
    )


def write(table: pa.Table, path: Path) -> None:
    """A zstd-1 Parquet file, durable under its name."""
    tmp = path.with_suffix(".tmp")
    with tmp.open("wb") as file:
        pq.write_table(table, file, compression="zstd", compression_level=1)
        file.flush()
        os.fsync(file.fileno())
    tmp.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def loop(decode: Callable[[list[bytes]], pa.Table]) -> None:
    """confluent-kafka's consume(10000), a file per 50,000 rows, with partition and offset as columns."""
    clock, out = Clock.from_env(), Path(os.environ["BENCH_SINK"])
    consumer = ck.Consumer(
        {
            "bootstrap.servers": os.environ["BENCH_SERVERS"],
            "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "queued.min.messages": 200_000,
        }
    )
    consumer.list_topics(os.environ["BENCH_TOPIC"], 10)
    clock.start()
    consumer.assign([ck.TopicPartition(os.environ["BENCH_TOPIC"], p, 0) for p in range(PARTITIONS)])
    held: list[ck.Message] = []
    for number in itertools.count():
        while len(held) < min(CHUNK_ROWS, clock.total - clock.rows):
            held += consumer.consume(10_000, 1)
        part, held = held[:CHUNK_ROWS], held[CHUNK_ROWS:]
        table = decode([m.value() for m in part])
        table = table.append_column("_partition", pa.array([m.partition() for m in part], pa.int32()))
        table = table.append_column("_offset", pa.array([m.offset() for m in part], pa.int64()))
        write(table, out / f"{number:06d}.parquet")
        if clock.add(len(part)):
            break
    consumer.close()


def writer() -> None:
    """Parquet alone: the batches of the Arrow topic are in memory already."""
    clock, out = Clock.from_env(), Path(os.environ["BENCH_SINK"])
    batches = list(arrow_batches(clock.total))
    each = -(-CHUNK_ROWS // batches[0].num_rows)
    clock.start()
    for number in range(0, len(batches), each):
        table = pa.Table.from_batches(batches[number : number + each])
        write(table, out / f"{number:06d}.parquet")
        clock.add(table.num_rows)


CONTENDERS: dict[str, Callable[[], Any]] = {
    "structs": lambda: loop(with_structs),
    "arrow": lambda: loop(with_arrow),
    "writer": writer,
}

if __name__ == "__main__":
    CONTENDERS[sys.argv[1]]()
