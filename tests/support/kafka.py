"""Topics and records for tests, through librdkafka."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic


def create_topic(admin: AdminClient, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> str:
    """Create the topic, wait until it is there, give its name back."""
    made = admin.create_topics([NewTopic(name, partitions, -1, config=dict(config or {}))], operation_timeout=30)
    made[name].result(30)
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
    """Every record of the topic up to its end as it is now, partition by partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": "unused",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": False,
            "isolation.level": "read_committed" if committed else "read_uncommitted",
        }
    )
    messages: list[Message] = []
    try:
        partitions = consumer.list_topics(topic, timeout=timeout).topics[topic].partitions
        deadline = time.monotonic() + timeout
        for partition in sorted(partitions):
            at = TopicPartition(topic, partition)
            low, high = consumer.get_watermark_offsets(at, timeout=timeout)
            at.offset = low
            consumer.assign([at])
            # The position passes transaction markers too, so it is what tells the end.
            while (position := consumer.position([at])[0].offset) < high if low < high else False:
                message = consumer.poll(0.2)
                if message is not None:
                    assert message.error() is None, message.error()
                    messages.append(message)
                assert time.monotonic() < deadline, f"{topic}-{partition}: at {position} of {high} after {timeout:g} s"
    finally:
        consumer.close()
    return messages
