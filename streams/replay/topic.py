"""The committed records of a topic, from given places up to its ends as they are at the start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import closing
from typing import NamedTuple

import confluent_kafka as ck
from confluent_kafka.admin import OffsetSpec

from millstream.cluster import TP, Cluster, TopicInfo, client_config
from millstream.errors import ConfigError
from millstream.settings import Settings
from schemas.chunk import ChunkId
from schemas.log_records import LogRecord
from streams.engine.reader import read_to_end
from streams.replay.plan import TopicPlan
from streams.replay.slices import Held, Slice

_FETCH = 500
"""Records taken from librdkafka at once. It holds 64 MiB of them at most, and we a slice of each partition."""


class Range(NamedTuple):
    """Offsets of one partition, the end excluded."""

    first: int
    end: int


class TopicSource:
    """Reads without a consumer group: nobody's position moves. Raises ConfigError, BrokerError."""

    def __init__(self, settings: Settings, topic: str, plan: TopicPlan) -> None:
        self.topic, self.notes = topic, list[str]()
        self._settings, self._plan = settings, plan
        self._cluster = Cluster(client_config(settings), settings.request_timeout)
        self._info = TopicInfo("", 0)
        self.ranges: dict[int, Range] = {}

    async def prepare(self, held: Mapping[int, Held]) -> int:
        """From where to where, now; how many offsets that is."""
        return await asyncio.to_thread(self._prepare, held)

    async def slices(self, rows: int) -> AsyncGenerator[Slice, None]:
        """Records of the ranges, `rows` of a partition at a time."""
        reading = _read(self._cluster, self._settings, self.topic, self.ranges, rows)
        try:
            while (found := await asyncio.to_thread(next, reading, None)) is not None:
                partition, first, records = found
                last = records[-1].offset
                yield Slice(ChunkId(self.topic, self._info.id, 0, partition, first, last), records)
        finally:
            await asyncio.to_thread(reading.close)

    def _prepare(self, held: Mapping[int, Held]) -> int:
        info = self._cluster.topics([self.topic]).get(self.topic)
        if info is None:
            raise ConfigError(f"there is no topic {self.topic!r}: check MILLSTREAM_OUTBOX_TOPICS and the namespace")
        self._info = info
        if any(place.topic_id != info.id for place in held.values()):
            raise ConfigError(f"topic {self.topic} was deleted and made anew since the replay began: --no-resume")
        tps = [TP(self.topic, p) for p in range(info.partitions)]
        low = self._cluster.offsets(tps, OffsetSpec.earliest())
        # What belongs to a transaction that is open now is for whoever reads live.
        high = self._cluster.offsets(tps, OffsetSpec.latest(), ck.IsolationLevel.READ_COMMITTED)
        self.notes.clear()
        self.ranges.clear()
        for tp, start in self._starts(tps, low, high).items():
            place = held.get(tp.partition)
            first = start if place is None else place.last + 1
            if first < low[tp]:
                raise ConfigError(
                    f"partition {tp.partition} of {self.topic} begins at offset {low[tp]}, what was before is gone; "
                    f"asked for: {first}. Replay from the outbox, or from there"
                )
            self.ranges[tp.partition] = Range(first, max(first, high[tp]))
        return sum(end - first for first, end in self.ranges.values())

    def _starts(self, tps: list[TP], low: Mapping[TP, int], high: Mapping[TP, int]) -> dict[TP, int]:
        plan = self._plan
        if plan.offsets is not None:
            for partition, offset in plan.offsets.items():
                tp = TP(self.topic, partition)
                if tp not in high:
                    raise ConfigError(f"--offset: {self.topic} has partitions 0 to {len(tps) - 1}, not {partition}")
                if offset > high[tp]:
                    raise ConfigError(f"--offset: partition {partition} ends at {high[tp]}, before {offset}")
            return {TP(self.topic, p): o for p, o in plan.offsets.items()}
        if cut := [tp for tp in tps if low[tp] > 0]:
            self.notes.append(
                f"the log of {len(cut)} of {len(tps)} partitions no longer has its beginning (partition "
                f"{cut[0].partition} begins at offset {low[cut[0]]})"
            )
        if plan.since is None:
            return {tp: low[tp] for tp in tps}
        found = self._cluster.offsets(tps, OffsetSpec.for_timestamp(int(plan.since.timestamp() * 1000)))
        return {tp: min(found[tp], high[tp]) if found[tp] >= 0 else high[tp] for tp in tps}


def _read(
    cluster: Cluster, settings: Settings, topic: str, ranges: Mapping[int, Range], rows: int
) -> Generator[tuple[int, int, list[LogRecord]], None, None]:
    """Partition, first offset of the stretch, records. Blocking."""
    buffers = {p: _Buffer(r.first) for p, r in ranges.items()}
    starts = {TP(topic, p): r.first for p, r in ranges.items()}
    ends = {TP(topic, p): r.end for p, r in ranges.items()}
    patience = settings.request_timeout
    with closing(read_to_end(cluster, starts, ends, patience=patience, at_once=_FETCH)) as reading:
        for tp, messages, reached in reading:
            buffer = buffers[tp.partition]
            for message in messages:
                if (message.offset() or 0) < ends[tp]:
                    buffer.add(message)
                    if buffer.full(rows, settings.chunk_max_bytes):
                        yield tp.partition, *buffer.take()
            if buffer.records and reached >= ends[tp]:
                yield tp.partition, *buffer.take()


class _Buffer:
    """Records of one partition that are not handed over yet."""

    def __init__(self, first: int) -> None:
        self._first, self._bytes = first, 0
        self.records: list[LogRecord] = []

    def add(self, message: ck.Message) -> None:
        """Keep a record."""
        key, value = message.key(), message.value()
        headers = [(name, v.encode() if isinstance(v, str) else v) for name, v in message.headers() or []]
        self.records.append(LogRecord(message.offset() or 0, message.timestamp()[1], 0, key, value, headers))
        self._bytes += len(key or b"") + len(value or b"")

    def full(self, rows: int, size: int) -> bool:
        """Whether it is time."""
        return len(self.records) >= rows or self._bytes >= size

    def take(self) -> tuple[int, list[LogRecord]]:
        """The first offset of the stretch, and the records; the next stretch begins behind them."""
        first, records = self._first, self.records
        self._first, self.records, self._bytes = records[-1].offset + 1, [], 0
        return first, records
