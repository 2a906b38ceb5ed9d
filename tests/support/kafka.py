"""Topics and records for tests, through librdkafka."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.support.waiting import wait_until

DECISION_SECONDS = 5.0
"""For a commit that was answered to be written to the log."""


def create_topic(admin: AdminClient, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> str:
    """Create the topic, wait until it is there, give its name back."""
    made = admin.create_topics([NewTopic(name, partitions, -1, config=dict(config or {}))], operation_timeout=30)
    made[name].result(30)

    def there() -> bool:
        """The controller has answered; brokers hear of it a moment later."""
        found = admin.list_topics(name, timeout=30).topics[name].partitions
        return len(found) == partitions and all(p.leader >= 0 for p in found.values())

    wait_until(there, 30, f"topic {name}")
    return name


def produce(
    kafka: str, topic: str, records: Iterable[Mapping[str, Any]], config: Mapping[str, Any] | None = None
) -> None:
    """Produce records (`value`, and optionally `key`, `partition`, `headers`) and wait for all acknowledgements."""
    failed: list[str] = []
    basic = {"bootstrap.servers": kafka, "linger.ms": 5, "partitioner": "murmur2_random"}
    producer = Producer(basic | dict(config or {}))
    for record in records:
        producer.produce(topic, **record, on_delivery=lambda error, _: failed.append(str(error)) if error else None)
        producer.poll(0)
    assert producer.flush(30) == 0
    assert failed == []


def read_all(kafka: str, topic: str, *, committed: bool = True, timeout: float = 30) -> list[Message]:
    """Every record of the topic up to its end as it is now, partition by partition.

    A commit is answered before its markers are written: what was committed is waited for.
    """
    messages: list[Message] = []
    with closing(_reader(kafka, "read_committed" if committed else "read_uncommitted")) as consumer:
        numbers = sorted(consumer.list_topics(topic, timeout=timeout).topics[topic].partitions)
        partitions = [TopicPartition(topic, number) for number in numbers]
        if committed:
            _until_decided(kafka, consumer, partitions, timeout)
        deadline = time.monotonic() + timeout
        for at in partitions:
            low, high = consumer.get_watermark_offsets(at, timeout=timeout)
            at.offset = low
            consumer.assign([at])
            # The position passes transaction markers too, so it is what tells the end.
            while (position := consumer.position([at])[0].offset) < high if low < high else False:
                message = consumer.poll(0.02)
                if message is not None:
                    assert message.error() is None, message.error()
                    messages.append(message)
                assert time.monotonic() < deadline, f"{at.topic}-{at.partition}: {position} of {high} in {timeout:g} s"
    return messages


def _reader(kafka: str, isolation: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": "unused",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": False,
            "fetch.wait.max.ms": 10,
            "isolation.level": isolation,
        }
    )


def _until_decided(kafka: str, committed: Consumer, partitions: list[TopicPartition], timeout: float) -> None:
    """Until no transaction is open; not for long, since one may have been left open by who was killed."""
    deadline = time.monotonic() + DECISION_SECONDS
    with closing(_reader(kafka, "read_uncommitted")) as everything:
        for at in partitions:
            _, end = everything.get_watermark_offsets(at, timeout=timeout)
            while committed.get_watermark_offsets(at, timeout=timeout)[1] < end and time.monotonic() < deadline:
                time.sleep(0.02)
