"""The broker that all other integration tests stand on."""

from __future__ import annotations

from tests.conftest import MakeTopic
from tests.support.kafka import produce, read_all


def test_records_produced_to_the_real_broker_are_read_back(kafka: str, make_topic: MakeTopic) -> None:
    topic = make_topic("orders", partitions=2)
    produce(kafka, topic, [{"value": str(n).encode(), "partition": n % 2} for n in range(10)])
    assert sorted(int(m.value() or b"") for m in read_all(kafka, topic)) == list(range(10))


def test_a_test_using_the_broker_is_marked_kafka(kafka: str, request: object) -> None:
    assert kafka
    assert request.node.get_closest_marker("kafka")  # type: ignore[attr-defined]
