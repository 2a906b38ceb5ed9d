"""Which partitions were ever started, on record in a compacted topic (rule 6): no offset of ours is not zero.

Group offsets expire seven days after a group is empty, and reset tools erase the plan. A partition that stands here but
has no offset of ours must not start at zero again: the worker stops and names the ways out.
"""

from __future__ import annotations

from collections.abc import Iterable

import confluent_kafka as ck
import msgspec
from confluent_kafka.admin import NewTopic, OffsetSpec

from millstream.errors import BrokerError, MillstreamError
from streams.engine.chunk import Output
from streams.engine.cluster import TP, Cluster


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

    def declaration(self, replication: int) -> NewTopic:
        """The topic to create."""
        return NewTopic(self.topic, 1, replication, config={"cleanup.policy": "compact"})

    def read(self) -> dict[tuple[str, int], Entry]:
        """(topic id, partition) -> entry. Blocking; reads the whole topic, committed records only."""
        found: dict[tuple[str, int], Entry] = {}
        for message in read_to_end(self._cluster, TP(self.topic, 0), 0):
            topic_id, _, partition = (message.key() or b"").decode().rpartition("/")
            if (value := message.value()) is None:
                found.pop((topic_id, int(partition)), None)
            else:
                found[topic_id, int(partition)] = msgspec.json.decode(value, type=Entry)
        return found

    def output(self, topic_id: str, entry: Entry) -> Output:
        """The record that puts a partition into the registry."""
        return Output(self.topic, f"{topic_id}/{entry.partition}".encode(), msgspec.json.encode(entry), 0)


def read_to_end(cluster: Cluster, tp: TP, start: int, chunk: int = 5000) -> Iterable[ck.Message]:
    """All committed records of a partition from `start` to where its log ends now. Blocking generator."""
    end = cluster.offsets([tp], OffsetSpec.latest())[tp]
    consumer = ck.Consumer(
        {
            **cluster.config,
            "group.id": "millstream-reader",  # never joined, never committed
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 50,
        }
    )
    try:
        consumer.assign([ck.TopicPartition(tp.topic, tp.partition, start)])
        position = start
        while position < end:
            for message in consumer.consume(chunk, 1.0):
                if (error := message.error()) is None:
                    position = (message.offset() or 0) + 1
                    yield message
                elif error.code() == ck.KafkaError._PARTITION_EOF:
                    position = max(position, message.offset() or 0)  # past control records and aborted ones too
                else:
                    raise BrokerError(f"cannot read {tp.topic}-{tp.partition}: {error.str()}")
    finally:
        consumer.close()
