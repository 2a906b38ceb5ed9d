"""Setting a stream back on purpose: positions to where its log begins, under a raised epoch (rule 6).

The epoch is part of every chunk's identity, so nothing that is written again is taken for what stands in a sink
already. Tables that the stream feeds begin empty: their changelogs are deleted, and with them what is on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import confluent_kafka as ck
from confluent_kafka.admin import OffsetSpec

from millstream.cluster import TP, Cluster
from millstream.errors import BrokerError, ConfigError
from streams.engine.plan import Position
from streams.engine.registry import Entry, Registry

T = TypeVar("T")
UNFINISHED = "millstream reset was not finished: run it again"
"""Metadata of the offsets while a reset is under way; no worker accepts it (ForeignOffsetError shows it)."""


@dataclass(frozen=True, slots=True)
class Reset:
    """What is going to be done."""

    positions: dict[TP, Position]
    changelogs: list[str]
    """Topics that will be deleted; the next worker makes them anew."""


class Resetter:
    """Plans a reset, so that it can be shown, and carries it out. Blocking. The group must be empty."""

    def __init__(self, cluster: Cluster, registry: Registry, group: str) -> None:
        self._cluster, self._registry, self._group = cluster, registry, group

    def plan(self, topics: Iterable[str], changelogs: Iterable[str]) -> Reset:
        """Every partition of the topics at its log's start, one epoch up. Raises ConfigError."""
        wanted = sorted(set(topics))
        found = self._cluster.topics(wanted)
        if missing := set(wanted) - found.keys():
            raise ConfigError(f"topic {min(missing)!r} does not exist")
        starts = self._cluster.offsets(
            [TP(t, p) for t, info in found.items() for p in range(info.partitions)], OffsetSpec.earliest()
        )
        epochs: dict[str, int] = {}
        for entry in self._registry.read().values():
            epochs[entry.topic] = max(epochs.get(entry.topic, 0), entry.epoch)
        positions = {
            tp: Position(offset, found[tp.topic].id, epochs.get(tp.topic, 0) + 1) for tp, offset in starts.items()
        }
        return Reset(positions, sorted(self._cluster.topics(changelogs)))

    def run(self, reset: Reset, wait: float = 10.0) -> None:
        """Carry it out. Until its last step no worker starts on these topics, so a crash leaves nothing half reset:
        run it again.

        Raises ConfigError while the group has members.
        """
        self._need_empty_group(wait)
        self._commit({tp: (p.offset, UNFINISHED) for tp, p in reset.positions.items()})
        self._cluster.delete(reset.changelogs)
        self._register(reset.positions)
        self._commit({tp: (p.offset, p.metadata) for tp, p in reset.positions.items()})

    def _register(self, positions: dict[TP, Position]) -> None:
        producer = ck.Producer({**self._cluster.config, "enable.idempotence": True, "partitioner": "murmur2_random"})
        failed: list[str] = []

        def delivered(error: ck.KafkaError | None, _message: ck.Message) -> None:
            if error is not None:
                failed.append(error.str())

        for tp, position in positions.items():
            out = self._registry.output(position.topic_id, Entry(tp.topic, tp.partition, position.epoch))
            producer.produce(out.topic, out.value, out.key, out.partition, delivered)
        if producer.flush(30) or failed:
            why = failed[0] if failed else "the broker does not answer"
            raise BrokerError(f"cannot write to {self._registry.topic!r}: {why}. Run `millstream reset` again")

    def _commit(self, positions: dict[TP, tuple[int, str]]) -> None:
        consumer = ck.Consumer({**self._cluster.config, "group.id": self._group, "enable.auto.commit": False})
        offsets = [ck.TopicPartition(*tp, offset, metadata=text) for tp, (offset, text) in positions.items()]
        try:
            _result("commit the positions", lambda: consumer.commit(offsets=offsets, asynchronous=False))
        finally:
            consumer.close()

    def _need_empty_group(self, wait: float) -> None:
        """A worker that was just stopped may still be listed: wait a little."""
        deadline = time.monotonic() + wait
        while True:
            described = self._cluster.admin.describe_consumer_groups([self._group])[self._group]
            members = _result("describe the group", described.result).members
            if not members:
                return
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"group {self._group!r} has {len(members)} members: stop all workers first; a position cannot be "
                    "set under a running one"
                )
            time.sleep(0.2)


def _result(what: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except ck.KafkaException as exc:
        raise BrokerError(f"cannot {what}: {exc.args[0].str()}") from exc
