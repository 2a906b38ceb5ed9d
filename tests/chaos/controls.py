"""Known-bad variants of the engine: each takes one rule away. The checker must catch every one of them.

They patch the running worker (`CHAOS_CONTROL`, see stream_app) and live only here.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import confluent_kafka as ck
from confluent_kafka.admin import OffsetSpec

from millstream.cluster import TP, Cluster
from millstream.transactional import TransactionalClient
from streams.engine import cycle, loading, recovery

READ = "control: read too early"
"""Said on stdout by controls that read offsets or ends while a transaction is open."""


def no_plan() -> None:
    """Rule 1 away: nothing is on record before it is written, so a replay cuts chunks by what is buffered then."""
    init = cycle.CommitCycle.__init__

    def without(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **(kwargs | {"plans": False}))

    cycle.CommitCycle.__init__ = without  # type: ignore[method-assign]


def no_generation() -> None:
    """Rule 2's fence away: offsets are committed without generation and member id."""

    def unfenced(group: str, _generation: int, _member: str) -> bytes:
        return b"CGMDv2:" + struct.pack("<i", -1) + group.encode() + b"\0\0\x01"

    loading.group_metadata = unfenced  # type: ignore[attr-defined]


def unstable_offsets() -> None:
    """Rule 4a away: the offset is taken as it stands while a predecessor's transaction is still open over it."""

    def stale(self: Cluster, group: str, tps: Iterable[TP], *_: Any) -> dict[TP, tuple[int, str]]:
        reader = ck.Consumer({**self.config, "group.id": group, "isolation.level": "read_uncommitted"})
        answer = reader.committed([ck.TopicPartition(*tp) for tp in tps], 30)
        reader.close()
        print(READ, file=sys.__stdout__, flush=True)
        return {TP(t.topic, t.partition): (t.offset, t.metadata or "") for t in answer}

    Cluster.stable_offsets = stale  # type: ignore[method-assign]


def ends_first() -> None:
    """The order of rule 4 alone: ends are read before the offsets are stable, as ever uncommitted."""
    _read_ends_first(ck.IsolationLevel.READ_UNCOMMITTED)


def committed_ends_first() -> None:
    """Rule 4b away too: the ends are what is *committed*, and read before the offsets are stable."""
    _read_ends_first(ck.IsolationLevel.READ_COMMITTED)


def _read_ends_first(isolation: ck.IsolationLevel) -> None:
    load, stable, read = recovery.Recovery.load, Cluster.stable_offsets, recovery.read_to_end
    offsets: Callable[..., dict[TP, int]] = Cluster.offsets
    logs: set[TP] = set()
    ends: dict[TP, int] = {}

    def noting(self: Any, assigned: Any, tables: Any, alive: Any) -> Any:
        logs.clear()
        logs.update(TP(t.changelog, tp.partition) for tp in assigned for t in tables.get(tp, ()))
        return load(self, assigned, tables, alive)

    def late(self: Cluster, *args: Any) -> Any:
        ends.clear()
        ends.update(offsets(self, logs, OffsetSpec.latest(), isolation))
        print(READ, file=sys.__stdout__, flush=True)
        return stable(self, *args)

    def early(self: Cluster, tps: Iterable[TP], at: Any, *args: Any) -> dict[TP, int]:
        if (wanted := set(tps)) and wanted == logs and at == OffsetSpec.latest():
            return dict(ends)
        return offsets(self, wanted, at, *args)

    def bounded(*args: Any) -> Iterator[tuple[TP, list[ck.Message], int]]:
        for tp, messages, position in read(*args):
            yield tp, [m for m in messages if (m.offset() or 0) < ends[tp]], position

    recovery.Recovery.load = noting  # type: ignore[method-assign]
    recovery.read_to_end = bounded  # type: ignore[attr-defined,assignment]
    Cluster.stable_offsets = late  # type: ignore[method-assign]
    Cluster.offsets = early  # type: ignore[method-assign]


def same_producer() -> None:
    """Hole j's rule away: the next transaction begins under the same epoch though a request of the last is lost."""
    TransactionalClient._lost = lambda _self: ""  # type: ignore[method-assign]


CONTROLS: dict[str, Callable[[], None]] = {
    f.__name__: f for f in (no_plan, no_generation, unstable_offsets, ends_first, committed_ends_first, same_producer)
}
