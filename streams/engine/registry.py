"""Which partitions were ever started, on record in a compacted topic (rule 6): no offset of ours is not zero.

Group offsets expire seven days after a group is empty, and reset tools erase the plan. A partition that stands here but
has no offset of ours must not start at zero again: the worker stops and names the ways out.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from confluent_kafka.admin import NewTopic, OffsetSpec

from millstream.cluster import TP, Cluster, new_topic
from millstream.errors import MillstreamError
from millstream.settings import Settings
from streams.engine.chunk import Output
from streams.engine.reader import read_to_end


class LostPositionError(MillstreamError):
    """A partition was started once and its group offset is gone."""


class Entry(msgspec.Struct, frozen=True):
    """One partition's record."""

    topic: str
    partition: int
    epoch: int
    """Stream epoch: part of every chunk's identity, raised by `reset`."""


class Registry:
    """The registry topic of one app."""

    def __init__(self, cluster: Cluster, app_id: str) -> None:
        self._cluster = cluster
        self.topic = f"{app_id}-registry"

    def declaration(self, settings: Settings) -> NewTopic:
        """The topic to create."""
        return new_topic(settings, self.topic, 1, **{"cleanup.policy": "compact"})

    def read(self, alive: Callable[[], bool] = lambda: True) -> dict[tuple[str, int], Entry]:
        """(topic id, partition) -> entry. Blocking; reads the whole topic, committed records only.

        Ends early, with what it has, once `alive` is false.
        """
        found: dict[tuple[str, int], Entry] = {}
        tp = TP(self.topic, 0)
        start = self._cluster.offsets([tp], OffsetSpec.earliest())
        for _, messages, _ in read_to_end(self._cluster, start, alive=alive):
            for message in messages:
                topic_id, _, partition = (message.key() or b"").decode().rpartition("/")
                if (value := message.value()) is None:
                    found.pop((topic_id, int(partition)), None)
                else:
                    found[topic_id, int(partition)] = msgspec.json.decode(value, type=Entry)
        return found

    def output(self, topic_id: str, entry: Entry) -> Output:
        """The record that puts a partition into the registry."""
        return Output(self.topic, f"{topic_id}/{entry.partition}".encode(), msgspec.json.encode(entry), 0)
