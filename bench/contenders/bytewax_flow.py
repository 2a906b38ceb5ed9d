"""Bytewax: KafkaSource -> Parquet, run by bench/.venv: python -m bytewax.run bench.contenders.bytewax_flow:flow.

No recovery store, so no guarantee: rows that the sink holds are lost with the process. Its fastest way.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pyarrow as pa
from bytewax import operators as op
from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition

from bench.clock import Clock
from bench.loops import CHUNK_ROWS, with_arrow, write

Message = KafkaSourceMessage[bytes, bytes]


class Files(StatelessSinkPartition[Message]):  # type: ignore[misc]
    """A file per CHUNK_ROWS."""

    def __init__(self) -> None:
        self.clock, self.directory = Clock.from_env(), Path(os.environ["BENCH_SINK"])
        self.clock.start()
        self.held: list[Message] = []
        self.numbers = itertools.count()

    def write_batch(self, items: list[Message]) -> None:
        """Hold them until a file is full, or all are here."""
        self.held += items
        while self.held and len(self.held) >= min(CHUNK_ROWS, self.clock.total - self.clock.rows):
            part, self.held = self.held[:CHUNK_ROWS], self.held[CHUNK_ROWS:]
            table = with_arrow([m.value for m in part])
            table = table.append_column("_partition", pa.array([m.partition for m in part], pa.int32()))
            table = table.append_column("_offset", pa.array([m.offset for m in part], pa.int64()))
            write(table, self.directory / f"{next(self.numbers):06d}.parquet")
            self.clock.add(len(part))


class ParquetSink(DynamicSink[Message]):  # type: ignore[misc]
    """One worker, one partition."""

    def build(self, step_id: str, worker_index: int, worker_count: int) -> Files:
        """Its partition; made before anything is read."""
        del step_id, worker_index, worker_count
        return Files()


flow = Dataflow("bench")
source = KafkaSource(
    [os.environ["BENCH_SERVERS"]],
    [os.environ["BENCH_TOPIC"]],
    batch_size=10_000,
    add_config={"queued.min.messages": "200000"},
)
op.output("out", op.input("in", flow, source), ParquetSink())
