"""What the group has committed, by an admin client of our own."""

from __future__ import annotations

from typing import NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from tests.support.waiting import wait_until


class Committed(NamedTuple):
    """A partition's group offset."""

    offset: int
    planned: bool
    """A chunk is on record as planned and not as committed."""
    metadata: str


class Group:
    """Offsets of one group in some topics."""

    def __init__(self, kafka: str, group: str) -> None:
        self.name = group
        self._admin = AdminClient({"bootstrap.servers": kafka})
        # read_committed: waits while a transaction is open over the offsets.
        settings = {"bootstrap.servers": kafka, "group.id": group, "isolation.level": "read_committed"}
        self._reader = Consumer(settings)
        self._closed = False

    def close(self) -> None:
        """Disconnect, once."""
        if not self._closed:
            self._closed = True
            self._reader.close()

    def topics(self, prefix: str) -> dict[str, int]:
        """Topic -> partitions, of all topics whose name begins so."""
        found = self._admin.list_topics(timeout=30).topics
        return {name: len(t.partitions) for name, t in found.items() if name.startswith(prefix)}

    def committed(self, tps: list[TopicPartition]) -> dict[tuple[str, int], Committed] | None:
        """Positions; None while a transaction is open over one of them."""
        # Not by the AdminClient: asked for offsets of a new group it ended the process with SIGSEGV (2.16.1).
        try:
            answer = self._reader.committed([TopicPartition(t.topic, t.partition) for t in tps], 2)
        except KafkaException:
            return None
        if any(tp.error is not None for tp in answer):
            return None
        found = {}
        for tp in answer:
            metadata = tp.metadata or ""
            found[tp.topic, tp.partition] = Committed(tp.offset, metadata.count("|") > 2, metadata)
        return found

    def members(self) -> int:
        """Workers that are in the group."""
        return len(self._admin.describe_consumer_groups([self.name])[self.name].result(30).members)

    def ends(self, tps: list[TopicPartition]) -> dict[tuple[str, int], int]:
        """Log end offsets."""
        futures = self._admin.list_offsets({TopicPartition(t.topic, t.partition): OffsetSpec.latest() for t in tps})
        return {(tp.topic, tp.partition): f.result(30).offset for tp, f in futures.items()}

    def lag(self, tps: list[TopicPartition]) -> str:
        """Empty when everything up to the ends of the logs is committed; else what is missing."""
        positions, ends = self.committed(tps), self.ends(tps)
        if positions is None:
            return "a transaction is open"
        return ", ".join(
            f"{topic}-{p} at {at.offset}{' (planned)' if at.planned else ''} of {ends[topic, p]}"
            for (topic, p), at in positions.items()
            if at.offset < ends[topic, p]
        )

    def wait_past(self, offsets: dict[tuple[str, int], int], timeout: float) -> None:
        """Until every partition is committed to its offset."""
        tps = [TopicPartition(*tp) for tp in offsets]

        def look() -> bool:
            found = self.committed(tps)
            return found is not None and all(found[tp].offset >= offset for tp, offset in offsets.items())

        wait_until(look, timeout, f"group {self.name} at {offsets}", every=0.2)
