"""Brings a batch of events to Kafka, in order, and says of each whether it is in the log.

The producer is idempotent, so retries inside of it neither reorder nor double (T51). It is also *gap-less*: when Kafka
refuses a record, nothing that was sent after it gets through before it is dealt with. Otherwise the second event of an
aggregate would be read before the first one (T50). The price is a new producer after each refusal.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence

import confluent_kafka as ck

from millstream import metrics, tracing
from millstream.cluster import Cluster, client_config, new_topic
from millstream.errors import BrokerError
from millstream.logs import get_logger
from millstream.settings import Settings
from sources.outbox.message import Message
from sources.outbox.store import Failure

PURGE_SECONDS = 5.0
"""For reports of what was purged; librdkafka gives them at once."""
_REFUSED = {
    ck.KafkaError.MSG_SIZE_TOO_LARGE,
    ck.KafkaError.INVALID_MSG_SIZE,
    ck.KafkaError.INVALID_MSG,
    ck.KafkaError.INVALID_RECORD,
    ck.KafkaError.RECORD_LIST_TOO_LARGE,
    ck.KafkaError.INVALID_TIMESTAMP,
    ck.KafkaError.POLICY_VIOLATION,
}
"""Kafka looked at the record and will not have it. Everything else is an outage, or unknown."""

_stdlib = logging.getLogger(__name__)
log = get_logger(__name__)
Report = Callable[[ck.KafkaError | None, ck.Message | None], None]


class Publisher:
    """Blocking; one call at a time, from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cluster = Cluster(client_config(settings), settings.request_timeout)
        self._limits: dict[str, int] = {}
        self.topics: Mapping[str, str] = {
            kind: settings.namespace + topic for kind, topic in settings.outbox_topics.items()
        }
        self._producer: ck.Producer | None = None

    def prepare(self) -> None:
        """Create the topics that are missing, look up what they take. Raises BrokerError, ConfigError."""
        for kind in self.topics:  # from 0 on, so that the first failure is a rise
            for metric in (metrics.OUTBOX_PUBLISHED, metrics.OUTBOX_FAILED, metrics.OUTBOX_RETRIES):
                metric.labels(kind)
        s, names = self._settings, set(self.topics.values())
        missing = names - self._cluster.topics(names).keys()
        self._cluster.create(new_topic(s, name, s.outbox_topic_partitions) for name in sorted(missing))
        for name in names:
            allowed = int(self._cluster.topic_config(name, "max.message.bytes"))
            self._limits[name] = min(allowed, int(s.max_message_bytes))

    def answers(self) -> bool:
        """Whether Kafka can be reached."""
        try:
            self._cluster.topics(self.topics.values())
        except BrokerError:
            return False
        return True

    def unfit(self, message: Message) -> str | None:
        """Why this message can never get into its topic, if so."""
        limit = self._limits.get(message.topic, int(self._settings.max_message_bytes))
        if message.size <= limit:
            return None
        return (
            f"the record has {message.size:,} bytes, topic {message.topic} takes {limit:,}: raise its "
            "max.message.bytes (and MILLSTREAM_MAX_MESSAGE_BYTES), or publish an address instead of the content"
        )

    def publish(self, messages: Sequence[Message], timeout: float) -> list[Failure | bool]:
        """For each message: True (in the log), False (not tried: an earlier one of its key failed), or the failure.

        Whoever is not acknowledged within `timeout` seconds counts as failed, though it may be in the log (RO-90).
        """
        deadline = time.monotonic() + timeout
        results: list[Failure | bool] = [False] * len(messages)
        left, suspects = list(range(len(messages))), set[int]()
        while left:
            batch = left[:1] if left[0] in suspects else _until(left, suspects)
            reports = self._send([messages[i] for i in batch], deadline)
            errors = {i: report for i, report in zip(batch, reports, strict=True) if report is not None}
            for i in batch:
                if i not in errors:
                    results[i] = True
            refused = [i for i, error in errors.items() if error.code() in _REFUSED]
            if not refused and errors:
                for i, error in errors.items():
                    results[i] = Failure(_told(error, messages[i].topic))
                break  # an outage: the rest is not tried
            if len(batch) == 1 and refused:
                results[batch[0]] = Failure(_told(errors[batch[0]], messages[batch[0]].topic), counts=True)
            else:  # Kafka refuses whole batches of records: who is guilty comes out one by one
                suspects.update(refused)
            failed = {messages[i][:2] for i in batch if isinstance(results[i], Failure)}
            left = [i for i in left if results[i] is False and messages[i][:2] not in failed]
        return results

    def close(self) -> None:
        """Forget what is under way."""
        self._producer = None

    def _send(self, messages: Sequence[Message], deadline: float) -> list[ck.KafkaError | None]:
        """One report for each; after any error the producer is a new one."""
        producer = self._producer = self._producer or self._new()
        reports: list[ck.KafkaError | None] = [_NOT_SENT] * len(messages)
        answers: list[ck.Message | None] = [None] * len(messages)

        def noting(index: int) -> Report:
            def note(error: ck.KafkaError | None, message: ck.Message | None) -> None:
                # No call in here: where a producer dies, its error is pending while the last reports come.
                reports[index], answers[index] = error, message

            return note

        with contextlib.suppress(ck.KafkaException):  # the producer is dead: the reports say of what
            for index, message in enumerate(messages):
                if not self._queue(producer, message, noting(index), deadline):
                    break  # nothing behind a record that is not on its way
            producer.flush(max(0.0, deadline - time.monotonic()))
        if _stdlib.isEnabledFor(logging.DEBUG):
            for sent, report, answer in zip(messages, reports, answers, strict=True):
                if report is None and answer is not None:
                    tell_published(sent.headers, f"{answer.topic()}-{answer.partition()}@{answer.offset()}")
        if any(report is not None for report in reports):
            self._give_up(producer)
        return reports

    def _queue(self, producer: ck.Producer, message: Message, note: Report, deadline: float) -> bool:
        topic, key, value, headers = message
        while True:
            try:
                producer.produce(topic, value, key, on_delivery=note, headers=tracing.added(headers))
            except BufferError:
                producer.poll(0.1)
                if time.monotonic() > deadline:
                    return False
            except ck.KafkaException as exc:
                note(exc.args[0], None)
                return False
            else:
                return True

    def _give_up(self, producer: ck.Producer) -> None:
        """Reports for what is left; then this producer must not send anything any more."""
        producer.purge()
        deadline = time.monotonic() + PURGE_SECONDS
        while len(producer) and time.monotonic() < deadline:
            with contextlib.suppress(ck.KafkaException):  # it says again that it is dead
                producer.poll(0.05)
        self._producer = None

    def _new(self) -> ck.Producer:
        size = int(self._settings.max_message_bytes)
        return ck.Producer(
            {
                **self._cluster.config,
                "log_level": 0,  # a refusal is told by us, with the event that was refused
                "enable.idempotence": True,
                "enable.gapless.guarantee": True,
                "acks": "all",
                "message.timeout.ms": 0,  # ours is the only clock: what timed out here would leave a gap
                "partitioner": "murmur2_random",  # hole m
                "linger.ms": 5,
                "compression.type": "lz4",
                "message.max.bytes": size,
                "batch.size": min(size, 1_000_000),
            }
        )


_NOT_SENT = ck.KafkaError(ck.KafkaError._TIMED_OUT, "not acknowledged in time")


def tell_published(headers: Sequence[tuple[str, bytes]], message_id: str) -> None:
    """A line for one event, at level debug (RO-66)."""
    told = {name: value.decode("utf-8", "replace") for name, value in headers}
    log.debug(
        "outbox_event_published",
        **{name: told.get(name) for name in ("event_id", "aggregate_id", "version")},
        message_id=message_id,
        description="acknowledged by Kafka",
    )


def _until(left: Sequence[int], suspects: set[int]) -> list[int]:
    batch = []
    for i in left:
        if i in suspects:
            break
        batch.append(i)
    return batch


def _told(error: ck.KafkaError, topic: str) -> str:
    if error.code() in (ck.KafkaError._PURGE_INFLIGHT, ck.KafkaError._PURGE_QUEUE):
        return f"topic {topic}: Kafka did not acknowledge it in time; it may be in the log all the same"
    return f"topic {topic}: {error.name()}: {error.str()}"
