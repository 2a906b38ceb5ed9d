"""A producer that commits a source's position with its records (hole e): what Kafka Connect does since KIP-618.

The position stands in the metadata of a group offset, in the same transaction as the records it belongs to. A source
that is started again begins where the last committed transaction ended. `init_transactions` fences whoever fed under
the same id before, also one that was only paused, and decides its open transaction before the position is read.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from millstream.errors import BrokerError
from millstream.settings import Settings

METADATA_BYTES = 4096
"""offset.metadata.max.bytes of the broker."""
_QUEUE_KBYTES = 64 * 1024


def kafka_config(settings: Settings) -> dict[str, Any]:
    """librdkafka's settings for a broker."""
    return {"bootstrap.servers": settings.bootstrap_servers or "127.0.0.1:9092", "log_level": 2}


class FencedError(BrokerError):
    """Another feeder took over under the same transactional id."""


class TransactionalSource:
    """Sends the records of one source, with its position. Blocking; one thread."""

    def __init__(self, settings: Settings, name: str, topic: str, max_message_bytes: int) -> None:
        """`name` is stable for the source: transactional id and group of its position. Raises BrokerError."""
        self.name, self.topic = name, topic
        self._timeout = settings.transaction_timeout
        self._config = kafka_config(settings)
        self._request_timeout = settings.request_timeout
        self._open = False
        self._failed: list[str] = []
        self._producer = ck.Producer(
            {
                **self._config,
                "transactional.id": name,
                "transaction.timeout.ms": int(self._timeout * 1000),
                "partitioner": "murmur2_random",  # hole m
                "linger.ms": 5,
                "retry.backoff.ms": 5,  # the default of 100 makes 9 transactions/s out of 87
                "compression.type": "lz4",
                "queue.buffering.max.kbytes": _QUEUE_KBYTES,
                "message.max.bytes": max_message_bytes,
                "batch.size": min(max_message_bytes, 1_000_000),  # the topic's limit holds for a batch of them too
            }
        )
        try:
            self._producer.init_transactions(settings.request_timeout * 2)
        except ck.KafkaException as exc:
            raise BrokerError(f"transactional producer {name!r} cannot start: {exc.args[0].str()}") from exc

    def position(self) -> str | None:
        """The committed position; None if the source was never begun. Raises BrokerError."""
        # Not AdminClient.list_consumer_group_offsets: on a new cluster, while the group's coordinator is being set up,
        # it ended the process with SIGSEGV (confluent-kafka 2.16.1). read_committed asks for stable offsets too.
        consumer = ck.Consumer({**self._config, "group.id": self.name, "isolation.level": "read_committed"})
        deadline = time.monotonic() + self._request_timeout
        try:
            while True:
                try:
                    (found,) = consumer.committed([ck.TopicPartition(self.topic, 0)], self._request_timeout)
                    error = found.error
                except ck.KafkaException as exc:
                    error = exc.args[0]
                if error is None:
                    return found.metadata if found.offset >= 0 else None
                if error.code() not in _NOT_YET or time.monotonic() > deadline:
                    raise BrokerError(f"cannot read the position of {self.name!r}: {error.str()}")
                time.sleep(0.1)
        finally:
            consumer.close()

    def send(self, key: bytes, value: bytes, headers: list[tuple[str, bytes]], on_offset: Any = None) -> None:
        """Add a record to the transaction; waits while the queue is full. Raises BrokerError."""
        if not self._open:
            self._call("begin a transaction", self._producer.begin_transaction)
            self._open = True

        def delivered(error: ck.KafkaError | None, message: ck.Message) -> None:
            if error is not None:
                self._failed.append(error.str())
            elif on_offset is not None:
                on_offset(message.offset())

        while True:
            try:
                self._producer.produce(self.topic, value, key, headers=headers, on_delivery=delivered)
            except BufferError:
                self._producer.poll(0.1)
            except ck.KafkaException as exc:
                self._raise("send a record", exc)
            else:
                break
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until what was sent is in the log. Raises BrokerError."""
        left = self._producer.flush(self._timeout)
        if left or self._failed:
            why = self._failed[0] if self._failed else f"{left} records not acknowledged within {self._timeout:g} s"
            self._abort()
            raise BrokerError(f"records for topic {self.topic!r} did not get into the log: {why}. {_AGAIN}")

    def commit(self, sent: int, position: str) -> None:
        """Commit what was sent, and the position behind it. `sent` counts the source's messages. Raises BrokerError."""
        if len(position.encode()) > METADATA_BYTES:
            raise ValueError(f"the position of {self.name!r} is longer than {METADATA_BYTES} bytes: {position[:200]}…")
        self.flush()
        at = ck.TopicPartition(self.topic, 0, sent, metadata=position)
        # No member of the group: the transactional id is the fence here.
        group = b"CGMDv2:" + struct.pack("<i", -1) + self.name.encode() + b"\0\0\x01"
        self._call(
            "commit the position", lambda: self._producer.send_offsets_to_transaction([at], group, self._timeout)
        )
        self._call("commit", lambda: self._producer.commit_transaction(self._timeout))
        self._open = False

    def _call(self, what: str, call: Any) -> None:
        try:
            call()
        except ck.KafkaException as exc:
            self._raise(what, exc)

    def _raise(self, what: str, exc: ck.KafkaException) -> NoReturn:
        error: ck.KafkaError = exc.args[0]
        if error.code() in _FENCED:
            raise FencedError(
                f"another feeder of topic {self.topic!r} took over ({error.str()}); this one has ended"
            ) from exc
        self._abort()
        raise BrokerError(f"cannot {what}, topic {self.topic!r}: {error.str()}. {_AGAIN}") from exc

    def _abort(self) -> None:
        """Let the next life begin at once; if even this fails, its init_transactions aborts instead."""
        try:
            self._producer.abort_transaction(self._timeout)
        except ck.KafkaException:
            self._producer.purge()
        self._open = False


_NOT_YET = {
    ck.KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    ck.KafkaError.COORDINATOR_NOT_AVAILABLE,
    ck.KafkaError.NOT_COORDINATOR,
}
"""The group's coordinator is moving, or is being set up on a new cluster."""
_AGAIN = "Start it again: it goes on at its last commit"
_FENCED = {ck.KafkaError._FENCED, ck.KafkaError.INVALID_PRODUCER_EPOCH, ck.KafkaError.PRODUCER_FENCED}


class TopicInfo(NamedTuple):
    """What the broker says of a topic."""

    id: str
    partitions: int
    max_message_bytes: int


def ensure_topics(settings: Settings, topics: Iterable[NewTopic]) -> dict[str, TopicInfo]:
    """Create those that are missing, leave the others as they are. Blocking. Raises BrokerError."""
    admin, timeout = AdminClient(kafka_config(settings)), settings.request_timeout
    wanted = {t.topic: t for t in topics}
    found = _describe(admin, wanted, timeout)
    missing = wanted.keys() - found.keys()
    if missing:
        for name, future in admin.create_topics([wanted[m] for m in missing], request_timeout=timeout).items():
            try:
                future.result()
            except ck.KafkaException as exc:
                if exc.args[0].code() != ck.KafkaError.TOPIC_ALREADY_EXISTS:
                    raise BrokerError(f"cannot create topic {name!r}: {exc.args[0].str()}") from exc
    deadline = time.monotonic() + timeout
    while missing:  # a created topic takes a moment to be known everywhere
        found |= _describe(admin, missing, timeout)
        missing -= found.keys()
        if missing and time.monotonic() > deadline:
            raise BrokerError(f"topics {sorted(missing)} were created {timeout:g} s ago and are not there yet")
        time.sleep(0.02 if missing else 0)
    return {name: TopicInfo(*found[name], _largest(admin, name, timeout)) for name in wanted}


def new_topic(settings: Settings, name: str, partitions: int) -> NewTopic:
    """How we declare a topic of records."""
    size = str(int(settings.max_message_bytes))
    return NewTopic(name, partitions, settings.topic_replication_factor, config={"max.message.bytes": size})


def _describe(admin: AdminClient, names: Iterable[str], timeout: float) -> dict[str, tuple[str, int]]:
    found = {}
    for name, future in admin.describe_topics(ck.TopicCollection(list(names)), request_timeout=timeout).items():
        try:
            topic = future.result()
        except ck.KafkaException as exc:
            if exc.args[0].code() == ck.KafkaError.UNKNOWN_TOPIC_OR_PART:
                continue
            raise BrokerError(f"cannot describe topic {name!r}: {exc.args[0].str()}") from exc
        found[name] = str(topic.topic_id), len(topic.partitions)
    return found


def _largest(admin: AdminClient, topic: str, timeout: float) -> int:
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    try:
        config: Mapping[str, Any] = admin.describe_configs([resource], request_timeout=timeout)[resource].result()
    except ck.KafkaException as exc:
        raise BrokerError(f"cannot read the configuration of topic {topic!r}: {exc.args[0].str()}") from exc
    return int(config["max.message.bytes"].value)
