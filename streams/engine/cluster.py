"""What the engine asks of Kafka beside fetching and committing: topics, ids, offsets. All calls block."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from millstream.errors import BrokerError, ConfigError

T = TypeVar("T")
UNSTABLE_OFFSET_COMMIT = 88
_URL_SAFE = str.maketrans("+/", "-_")


class TP(NamedTuple):
    """A topic partition."""

    topic: str
    partition: int


class TopicInfo(NamedTuple):
    """What the broker says of a topic."""

    id: str
    """22 characters, base64url."""
    partitions: int


class Cluster:
    """An admin client with errors that say what was asked."""

    def __init__(self, config: Mapping[str, Any], request_timeout: float = 30.0) -> None:
        self.config = dict(config)
        self._timeout = request_timeout
        self.admin = AdminClient({**self.config, "socket.timeout.ms": int(request_timeout * 1000)})

    def topics(self, names: Iterable[str]) -> dict[str, TopicInfo]:
        """Id and partition count of those topics that exist."""
        wanted = sorted(set(names))
        if not wanted:
            return {}
        futures = self.admin.describe_topics(ck.TopicCollection(wanted), request_timeout=self._timeout)
        found = {}
        for name, future in futures.items():
            try:
                description = future.result()
            except ck.KafkaException as exc:
                if exc.args[0].code() == ck.KafkaError.UNKNOWN_TOPIC_OR_PART:
                    continue
                raise BrokerError(f"cannot describe topic {name!r}: {exc.args[0].str()}") from exc
            # librdkafka prints ids in base64's own alphabet, with "/", which no file name may hold; Kafka's has "_".
            topic_id = str(description.topic_id).translate(_URL_SAFE)
            found[name] = TopicInfo(topic_id, len(description.partitions))
        return found

    def matching(self, matches: Callable[[str], object]) -> list[str]:
        """Names of the existing topics that match."""
        metadata = self._call("list topics", lambda: self.admin.list_topics(timeout=self._timeout))
        return sorted(name for name in metadata.topics if matches(name))

    def create(self, topics: Iterable[NewTopic]) -> None:
        """Create topics; those that exist already must have the same number of partitions. Waits until all are there.

        Raises ConfigError for another partition count (T8), BrokerError otherwise.
        """
        wanted = {t.topic: t for t in topics}
        if not wanted:
            return
        missing = wanted.keys() - self.topics(wanted).keys()
        if missing:
            futures = self.admin.create_topics([wanted[m] for m in missing], request_timeout=self._timeout)
            for name, future in futures.items():
                try:
                    future.result()
                except ck.KafkaException as exc:
                    if exc.args[0].code() != ck.KafkaError.TOPIC_ALREADY_EXISTS:
                        raise BrokerError(f"cannot create topic {name!r}: {exc.args[0].str()}") from exc
        found = self._until(lambda: f if len(f := self.topics(wanted)) == len(wanted) else None, "topics to appear")
        for name, topic in wanted.items():
            if topic.num_partitions not in (-1, found[name].partitions):
                raise ConfigError(
                    f"topic {name!r} exists with {found[name].partitions} partitions, {topic.num_partitions} are "
                    "declared. Declare the number it has, or delete the topic: a table's state is bound to the "
                    "partition of its keys, so the number can't be changed in place (T8, T9)."
                )

    def offsets(
        self, tps: Iterable[TP], at: OffsetSpec, isolation: ck.IsolationLevel = ck.IsolationLevel.READ_UNCOMMITTED
    ) -> dict[TP, int]:
        """Log start or end offsets. Uncommitted by default: what an open transaction holds counts too."""
        request = {ck.TopicPartition(*tp): at for tp in tps}
        if not request:
            return {}
        futures = self.admin.list_offsets(request, isolation_level=isolation, request_timeout=self._timeout)
        return {
            TP(k.topic, k.partition): self._call(f"list offsets of {k.topic}-{k.partition}", f.result).offset
            for k, f in futures.items()
        }

    def stable_offsets(
        self, group: str, tps: Iterable[TP], timeout: float, alive: Callable[[], bool]
    ) -> dict[TP, tuple[int, str]]:
        """Group offset (-1001: none) and metadata of each partition, once no transaction of a predecessor is open.

        A paused worker's transaction is thereby decided, not skipped (rule 4a). Waits at most `timeout` seconds.
        """
        todo, found = set(tps), dict[TP, tuple[int, str]]()
        deadline = time.monotonic() + timeout
        while todo and alive():
            request = ck.ConsumerGroupTopicPartitions(group, [ck.TopicPartition(*tp) for tp in sorted(todo)])
            futures = self.admin.list_consumer_group_offsets(
                [request], require_stable=True, request_timeout=self._timeout
            )
            answer = self._call(f"fetch offsets of group {group!r}", futures[group].result)
            for tp in answer.topic_partitions:
                if tp.error is None:
                    found[TP(tp.topic, tp.partition)] = (tp.offset, tp.metadata or "")
                elif tp.error.code() != UNSTABLE_OFFSET_COMMIT:
                    raise BrokerError(f"cannot fetch the offset of {tp.topic}-{tp.partition}: {tp.error.str()}")
            todo -= found.keys()
            if todo and time.monotonic() > deadline:
                raise BrokerError(
                    f"after {timeout:.0f} s a transaction is still open over {sorted(todo)[0]}: its producer (another "
                    "worker's transactional id) neither ends it nor is fenced. Start that worker again, or abort it "
                    "with kafka-transactions.sh."
                )
            if todo:
                time.sleep(0.1)
        return found

    def _call(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except ck.KafkaException as exc:
            raise BrokerError(f"cannot {what}: {exc.args[0].str()}") from exc

    def _until(self, check: Callable[[], T | None], what: str) -> T:
        deadline = time.monotonic() + self._timeout
        while (result := check()) is None:
            if time.monotonic() > deadline:
                raise BrokerError(f"waited {self._timeout:.0f} s for {what}")
            time.sleep(0.05)
        return result
