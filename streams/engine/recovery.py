"""What happens at an assignment, strictly in this order (rule 4): stable positions, ends of the changelogs, restore.

All of it blocks and runs in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from confluent_kafka.admin import OffsetSpec

from millstream import metrics
from millstream.cluster import TP, Cluster, TopicInfo
from millstream.errors import BrokerError, ConfigError, MillstreamError
from millstream.failpoints import declare, failpoint
from millstream.logs import get_logger
from streams.engine.chunk import Output
from streams.engine.plan import Position
from streams.engine.reader import read_to_end
from streams.engine.registry import Entry, LostPositionError, Registry
from tables.store import Store, StorePosition

STABLE = declare("load.stable", "stable positions read, changelog ends not")
ENDS = declare("load.ends", "changelog ends read, nothing restored")
RESTORED = declare("load.restored", "tables restored, reading not begun")

log = get_logger(__name__)


class PositionOutOfRangeError(MillstreamError):
    """The log no longer reaches the committed position, or does not reach it yet (hole c)."""


class TopicRecreatedError(MillstreamError):
    """The topic under this name is not the one the position belongs to (hole b)."""


class TableLog(NamedTuple):
    """A table, its changelog, and its store on this worker."""

    changelog: str
    store: Store


@dataclass(frozen=True, slots=True)
class Fresh:
    """A partition seen for the first time: its position and registry record are yet to be committed, fenced."""

    tp: TP
    position: Position
    output: Output


class Loaded(NamedTuple):
    """What an assignment starts from."""

    positions: dict[TP, Position]
    fresh: list[Fresh]
    topic_ids: dict[str, str]
    """Of the source topics and the changelogs."""


class Progress(NamedTuple):
    """How far the loading of one changelog is."""

    table: str
    at: int
    """Next offset."""
    end: int


class Recovery:
    """Loads an assignment."""

    def __init__(self, cluster: Cluster, registry: Registry, group: str, stability_timeout: float) -> None:
        self._cluster, self._registry, self._group = cluster, registry, group
        self._stability_timeout = stability_timeout
        self._retention: dict[str, float] = {}
        self.progress: dict[TP, Progress] = {}
        """Of the changelogs that are being loaded; empty when nothing is. Replaced, not changed, for who looks on."""

    def load(self, assigned: Iterable[TP], tables: Mapping[TP, list[TableLog]], alive: Callable[[], bool]) -> Loaded:
        """Positions of all assigned partitions, with their tables restored.

        `tables`: the tables that each partition's chunks may change. `alive` turns false when the assignment is void.
        """
        started = time.monotonic()
        tps = sorted(assigned)
        offsets = self._cluster.stable_offsets(self._group, tps, self._stability_timeout, alive)
        failpoint(STABLE)
        logs = {TP(t.changelog, tp.partition): t.store for tp in tps for t in tables.get(tp, ())}
        names = {tp.topic for tp in (*tps, *logs)}
        topics = self._cluster.topics(names)
        if gone := names - topics.keys():
            raise BrokerError(
                f"topic {min(gone)!r} was assigned to this worker, and the broker does not know it: it was deleted "
                "just now, or is so new that not every broker has it yet. Started again, the worker sees what there is"
            )
        _check_partitions(tps, tables, topics)
        ends = self._cluster.offsets(logs, OffsetSpec.latest())  # uncommitted, and after the positions: rule 4b
        failpoint(ENDS)
        ids = {name: info.id for name, info in topics.items()}
        loaded = Loaded(*self._positions({tp: offsets[tp] for tp in tps if tp in offsets}, ids, alive), ids)
        try:
            self._restore(logs, ends, ids, alive)
        finally:
            self._show({})
        failpoint(RESTORED)
        metrics.RESTORE_SECONDS.observe(time.monotonic() - started)
        log.info(
            "partitions_loaded",
            description="positions stable, tables restored",
            partitions=len(tps),
            open_plans=sum(1 for p in loaded.positions.values() if p.plan),
            tables=len(logs),
            seconds=round(time.monotonic() - started, 2),
        )
        return loaded

    # ------------------------------------------------------------------ positions
    def _positions(
        self, offsets: dict[TP, tuple[int, str]], topic_ids: dict[str, str], alive: Callable[[], bool]
    ) -> tuple[dict[TP, Position], list[Fresh]]:
        starts = self._cluster.offsets(offsets, OffsetSpec.earliest())
        ends = self._cluster.offsets(offsets, OffsetSpec.latest())
        positions, fresh = {}, []
        known = self._registry.read(alive) if any(offset < 0 for offset, _ in offsets.values()) else {}
        for tp, (offset, metadata) in offsets.items():
            topic_id = topic_ids[tp.topic]
            if offset < 0:
                first = self._first_time(tp, topic_id, starts[tp], known)
                fresh.append(first)
                positions[tp] = first.position
                continue
            position = Position.parse(offset, metadata)
            if position.topic_id != topic_id:
                raise TopicRecreatedError(
                    f"topic {tp.topic!r} has id {topic_id}, but offset {offset} of group {self._group!r} belongs to "
                    f"{position.topic_id}: the topic was deleted and made anew. Its offsets name other records now. "
                    f"`millstream reset --topic {tp.topic}` starts it from the beginning under a new epoch."
                )
            self._check_range(tp, position, starts[tp], ends[tp])
            if position.plan is not None:
                # Counted in the log before anything is done with it, so that a chunk that kills its owner is seen.
                position = replace(position, plan=position.plan.replayed())
            positions[tp] = position
        return positions, fresh

    def _first_time(self, tp: TP, topic_id: str, start: int, known: dict[tuple[str, int], Entry]) -> Fresh:
        if (topic_id, tp.partition) in known:
            raise LostPositionError(
                f"{tp.topic}-{tp.partition} was started once, but group {self._group!r} has no offset for it: it "
                "expired (the group was empty for longer than the broker keeps offsets) or was deleted. Starting at "
                "the beginning would write everything again. Restore the group's offsets, or begin anew on purpose: "
                f"`millstream reset --topic {tp.topic}`."
            )
        epoch = 1 + max((e.epoch for e in known.values() if e.topic == tp.topic), default=0)
        entry = Entry(tp.topic, tp.partition, epoch)
        return Fresh(tp, Position(start, topic_id, epoch), self._registry.output(topic_id, entry))

    def _check_range(self, tp: TP, position: Position, start: int, end: int) -> None:
        last = position.plan.last if position.plan else position.offset - 1
        if not (start <= position.offset and last < end):
            raise PositionOutOfRangeError(
                f"{tp.topic}-{tp.partition}: position {position.offset}"
                + (f" with plan ..{last}" if position.plan else "")
                + f" is outside the log, which holds {start}..{end - 1}. Records were lost to retention, truncation "
                "or an unclean leader election. Restore them, or accept the loss: "
                f"`millstream reset --topic {tp.topic}`."
            )

    # ------------------------------------------------------------------ tables
    def _restore(
        self, logs: dict[TP, Store], ends: dict[TP, int], topic_ids: dict[str, str], alive: Callable[[], bool]
    ) -> None:
        """Bring every table partition up to the end noted for its changelog."""
        first = self._cluster.offsets(logs, OffsetSpec.earliest())
        starts = {}
        for tp, store in logs.items():
            at = store.open_partition(tp.partition)
            if at is not None and (why := self._stale(tp, at, first[tp], ends[tp], topic_ids[tp.topic])):
                log.warning("table_wiped", topic=tp.topic, partition=tp.partition, description=why)
                store.wipe_partition(tp.partition)
                at = None
            elif at is not None and at.next_offset == ends[tp]:
                store.apply(tp.partition, (), at)  # nothing is missing as of now: its age counts from here (hole k)
            starts[tp] = at.next_offset if at else first[tp]
        self._show({tp: Progress(store.table_name, starts[tp], ends[tp]) for tp, store in logs.items()})
        for tp, messages, position in read_to_end(self._cluster, starts, ends, alive, self._stability_timeout):
            if not alive():
                return
            changes = {m.key() or b"": m.value() for m in messages}  # the last change of a key wins
            logs[tp].apply(tp.partition, changes.items(), StorePosition(topic_ids[tp.topic], position, 0))
            metrics.RESTORED_RECORDS.labels(logs[tp].table_name).inc(len(messages))
            self._show(self.progress | {tp: self.progress[tp]._replace(at=position)})

    def _show(self, progress: dict[TP, Progress]) -> None:
        left = dict.fromkeys((p.table for p in (*self.progress.values(), *progress.values())), 0)
        for p in progress.values():
            left[p.table] += max(0, p.end - p.at)
        for table, records in left.items():
            metrics.RESTORE_LEFT.labels(table).set(records)
        self.progress = progress

    def _stale(self, tp: TP, at: StorePosition, first: int, end: int, topic_id: str) -> str:
        """Why the store on disk may not be continued, or nothing (hole k)."""
        if at.topic_id != topic_id:
            return "the changelog topic was made anew"
        if at.next_offset > end:
            return f"the store is at {at.next_offset}, the changelog ends at {end}"
        if at.next_offset == end:
            return ""  # whatever its age: nothing came after it, no tombstone either
        age, keep = time.time() - at.applied_at, self._delete_retention(tp.topic)
        if age > keep / 2:
            return f"the store is {age:.0f} s old; tombstones live {keep:.0f} s: deleted keys could come back"
        if at.next_offset < first:
            return "the changelog no longer reaches back to the store's position"
        return ""

    def _delete_retention(self, topic: str) -> float:
        """`delete.retention.ms` of a topic, in seconds."""
        if topic not in self._retention:
            self._retention[topic] = int(self._cluster.topic_config(topic, "delete.retention.ms")) / 1000
        return self._retention[topic]


def _check_partitions(tps: Iterable[TP], tables: Mapping[TP, list[TableLog]], topics: Mapping[str, TopicInfo]) -> None:
    """A key and its table entry meet only if topic and changelog have the same partitions (hole d, T8)."""
    for tp in tps:
        for table in tables.get(tp, ()):
            of_topic, of_table = topics[tp.topic].partitions, topics[table.changelog].partitions
            if of_topic != of_table:
                raise ConfigError(
                    f"topic {tp.topic!r} has {of_topic} partitions, the changelog {table.changelog!r} of a table that "
                    f"its agent changes has {of_table}. All topics of a table must have the same number of partitions: "
                    "re-partition the topic, or declare partitions=… before the changelog is made."
                )
