"""Chunks for the sink wrapper, a group that retries quickly, and what the metrics counted."""

from __future__ import annotations

import pyarrow as pa
from prometheus_client import REGISTRY

from schemas.batch import Batch, Run
from schemas.chunk import Chunk, ChunkId
from sinks.base import InstanceRange, Sink
from sinks.wrapper import SinkGroup

RUN = Run(Batch("prod", 1_691_999_696_123_456_789), "10.0.0.1:6379", "a" * 32)
TEN = pa.table({"n": list(range(10))})
WHERE = InstanceRange("tid", 0, 0, begin=0, done=3, exclusive=True)


def chunk(
    first: int = 1,
    rows: int = 2,
    *,
    run: Run | None = None,
    topic: str = "orders",
    partition: int = 0,
    crc: int = 0,
    replayed: bool = False,
) -> Chunk:
    identity = ChunkId(topic, "tid", 0, partition, first, first + rows - 1, crc)
    return Chunk(identity, TEN.slice(0, rows), run, replayed)


def quick(*sinks: Sink, timeout: float | None = None) -> SinkGroup:
    return SinkGroup(sinks, timeout, retry_initial=0.001, retry_max=0.002, retry_jitter=0)


def counted(name: str, **labels: str) -> float:
    for family in REGISTRY.restricted_registry([name]).collect():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return 0.0
