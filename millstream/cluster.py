"""What is asked of Kafka beside fetching, producing and committing: topics, ids, offsets. All calls block."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec

from millstream import kafka_security
from millstream.errors import BrokerError, ConfigError, KafkaRefusedError
from millstream.settings import Settings

T = TypeVar("T")
_LEADER_MOVES = {
    ck.KafkaError.NOT_LEADER_FOR_PARTITION,
    ck.KafkaError.LEADER_NOT_AVAILABLE,
    ck.KafkaError.FENCED_LEADER_EPOCH,
    ck.KafkaError.UNKNOWN_LEADER_EPOCH,
}
_STABLE_POLL = 0.5
"""Seconds of one request for stable offsets: librdkafka itself asks again within it, with a growing pause."""
_CONTROLLER_WAIT = 5.0
"""Seconds of one request to the controller."""
_UNANSWERED = {ck.KafkaError._TIMED_OUT, ck.KafkaError._TRANSPORT}
_UNDECIDED = {
    ck.KafkaError._TIMED_OUT,  # what an undecided transaction looks like: librdkafka asks again until the time is up
    ck.KafkaError._TRANSPORT,
    ck.KafkaError.UNSTABLE_OFFSET_COMMIT,
    ck.KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    ck.KafkaError.COORDINATOR_NOT_AVAILABLE,
    ck.KafkaError.NOT_COORDINATOR,
}
_URL_SAFE = str.maketrans("+/", "-_")


def client_config(settings: Settings) -> dict[str, Any]:
    """librdkafka's settings for the configured broker, the same for every client of ours. Raises ConfigError."""
    servers = settings.bootstrap_servers or "127.0.0.1:9092"
    return {"bootstrap.servers": servers, "log_level": 2, **kafka_security.librdkafka(settings)}


DEAD_LETTER_BYTES = 64 * 1024
"""Room for the headers that a dead letter has beyond its record: the largest record must still fit."""


def new_topic(settings: Settings, name: str, partitions: int, **config: str) -> NewTopic:
    """How we declare every topic of ours: it takes the largest message that we produce, as a dead letter too."""
    config = {"max.message.bytes": str(int(settings.max_message_bytes) + DEAD_LETTER_BYTES), **config}
    return NewTopic(name, partitions, settings.topic_replication_factor, config=config)


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
        self._errors: deque[ck.KafkaError] = deque(maxlen=20)
        own = {"socket.timeout.ms": min(300_000, int(request_timeout * 1000)), "error_cb": self._errors.append}
        self.admin = AdminClient({**self.config, **own})

    def topics(self, names: Iterable[str]) -> dict[str, TopicInfo]:
        """Id and partition count of those topics that exist."""
        wanted = sorted(set(names))
        if not wanted:
            return {}
        futures = self._ask(
            lambda timeout: self.admin.describe_topics(ck.TopicCollection(wanted), request_timeout=timeout)
        )
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
        found = self._until(lambda: self._all_of(wanted), "topics to appear")
        for name, topic in wanted.items():
            if topic.num_partitions not in (-1, found[name].partitions):
                raise ConfigError(
                    f"topic {name!r} exists with {found[name].partitions} partitions, {topic.num_partitions} are "
                    "declared. Declare the number it has, or delete the topic: a table's state is bound to the "
                    "partition of its keys, so the number can't be changed in place (T8, T9)."
                )

    def _all_of(self, wanted: Mapping[str, NewTopic]) -> dict[str, TopicInfo] | None:
        """What the broker says of the wanted topics; none while one of them is missing, and then it is asked for.

        Asked for each time, not once: a topic that was just deleted may still have been there at the first look.
        """
        found = self.topics(wanted)
        missing = wanted.keys() - found.keys()
        if not missing:
            return found
        futures = self._ask(
            lambda timeout: self.admin.create_topics([wanted[m] for m in missing], request_timeout=timeout)
        )
        _raise_but("create", futures, ck.KafkaError.TOPIC_ALREADY_EXISTS)
        return None

    def delete(self, topics: Iterable[str]) -> None:
        """Delete topics and wait until the broker no longer shows them. Those that do not exist are left out.

        Raises BrokerError.
        """
        before = self.topics(topics)
        if not before:
            return
        futures = self._ask(lambda timeout: self.admin.delete_topics(list(before), request_timeout=timeout))
        _raise_but("delete", futures, ck.KafkaError.UNKNOWN_TOPIC_OR_PART)
        # By id: someone may have made them anew by now.
        self._until(lambda: None if before.items() & self.topics(before).items() else True, "topics to disappear")

    def offsets(
        self, tps: Iterable[TP], at: OffsetSpec, isolation: ck.IsolationLevel = ck.IsolationLevel.READ_UNCOMMITTED
    ) -> dict[TP, int]:
        """Log start or end offsets. Uncommitted by default: what an open transaction holds counts too."""
        left, found = set(tps), dict[TP, int]()

        def ask() -> dict[TP, int] | None:
            """Leaders move, and a new topic has none at first: those partitions are asked for again."""
            request = {ck.TopicPartition(*tp): at for tp in left}
            futures = self.admin.list_offsets(request, isolation_level=isolation, request_timeout=self._timeout)
            for key, future in futures.items():
                tp = TP(key.topic, key.partition)
                try:
                    found[tp] = future.result().offset
                except ck.KafkaException as exc:
                    if exc.args[0].code() not in _LEADER_MOVES:
                        raise BrokerError(
                            f"cannot list offsets of {tp.topic}-{tp.partition}: {exc.args[0].str()}"
                        ) from exc
                else:
                    left.discard(tp)
            return None if left else found

        return self._until(ask, "leaders of partitions to answer") if left else found

    def topic_config(self, topic: str, name: str) -> str:
        """One entry of a topic's configuration, the broker's default included."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        future = self.admin.describe_configs([resource], request_timeout=self._timeout)[resource]
        config = self._call(f"read the configuration of topic {topic!r}", future.result)
        return str(config[name].value)

    def stable_offsets(
        self, group: str, tps: Iterable[TP], timeout: float, alive: Callable[[], bool] = lambda: True
    ) -> dict[TP, tuple[int, str]]:
        """Group offset (-1001: none) and metadata of each partition, once no transaction of a predecessor is open.

        A paused worker's transaction is thereby decided, not skipped (rule 4a). Waits at most `timeout` seconds.
        """
        # Not AdminClient.list_consumer_group_offsets: on a new cluster, while the group's coordinator is being set up,
        # it ended the process with SIGSEGV (confluent-kafka 2.16.1). read_committed asks for stable offsets too.
        wanted = [ck.TopicPartition(*tp) for tp in tps]
        if not wanted:
            return {}
        deadline = time.monotonic() + timeout
        consumer = ck.Consumer({**self.config, "group.id": group, "isolation.level": "read_committed"})
        try:
            while alive():
                try:
                    answer = consumer.committed(wanted, _STABLE_POLL)
                except ck.KafkaException as exc:
                    error = exc.args[0]
                else:
                    error = next((tp.error for tp in answer if tp.error is not None), None)
                    if error is None:
                        return {TP(tp.topic, tp.partition): (tp.offset, tp.metadata or "") for tp in answer}
                if error.code() not in _UNDECIDED:
                    raise BrokerError(f"cannot fetch the offsets of group {group!r}: {error.str()}")
                if time.monotonic() > deadline:
                    raise BrokerError(
                        f"after {timeout:.0f} s the offsets of group {group!r} are still not stable ({error.name()}): "
                        "the broker does not answer, or a transaction over them is open that its producer (another "
                        "worker's transactional id) neither ends nor is fenced in. Start that worker again, or abort "
                        "it with kafka-transactions.sh"
                    )
                time.sleep(0.05)
        finally:
            consumer.close()
        return {}

    def _ask(self, request: Callable[[float], dict[str, Future[Any]]]) -> dict[str, Future[Any]]:
        """Futures of a request that goes to the controller, all done.

        librdkafka waits for the controller it has heard of, also when that broker is down and another one has long
        taken over: it looks for another one when it is asked for metadata, so we do that now and then.
        """
        deadline = time.monotonic() + self._timeout
        self._errors.clear()
        while True:
            futures = request(min(_CONTROLLER_WAIT, self._timeout))
            concurrent.futures.wait(futures.values())
            errors = [future.exception() for future in futures.values()]
            late = [e for e in errors if isinstance(e, ck.KafkaException) and e.args[0].code() in _UNANSWERED]
            if not late:
                return futures
            self._raise_if_refused()
            if time.monotonic() > deadline:
                return futures
            with contextlib.suppress(ck.KafkaException):
                self.admin.list_topics(timeout=_CONTROLLER_WAIT)
            time.sleep(0.1)

    def _raise_if_refused(self) -> None:
        """Where nobody answers because of a password or a certificate, waiting longer is no use."""
        self.admin.poll(0)  # serves error_cb
        errors = list(self._errors)
        if (refused := kafka_security.refusal(self.config, errors)) is not None and refused.sure:
            raise KafkaRefusedError(kafka_security.unanswered(self.config, errors))

    def _call(self, what: str, call: Callable[[], T]) -> T:
        self._errors.clear()
        try:
            return call()
        except ck.KafkaException as exc:
            self._raise_if_refused()
            raise BrokerError(f"cannot {what}: {exc.args[0].str()}") from exc

    def _until(self, check: Callable[[], T | None], what: str) -> T:
        deadline = time.monotonic() + self._timeout
        while (result := check()) is None:
            if time.monotonic() > deadline:
                raise BrokerError(f"waited {self._timeout:.0f} s for {what}")
            time.sleep(0.05)
        return result


def _raise_but(what: str, futures: Mapping[str, Future[Any]], done: int) -> None:
    """Raise BrokerError for the first topic with an error; the code `done` is none: it was so before."""
    for name, future in futures.items():
        try:
            future.result()
        except ck.KafkaException as exc:
            if exc.args[0].code() != done:
                raise BrokerError(f"cannot {what} topic {name!r}: {exc.args[0].str()}") from exc
