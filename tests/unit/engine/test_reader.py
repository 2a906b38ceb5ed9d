"""Reading to the end: when a partition is done, what is waited for, and what the errors name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import confluent_kafka as ck
import pytest
from confluent_kafka.admin import OffsetSpec

from millstream.cluster import TP
from millstream.errors import BrokerError
from streams.engine import reader
from streams.engine.registry import Registry
from tests.model.clients import Message

A, B = TP("t", 0), TP("t", 1)


class World:
    """A clock, and what librdkafka is going to hand over: nothing, for 0.2 s, once that is used up."""

    def __init__(self, *handed: list[Message]) -> None:
        self.now, self.handed = 0.0, list(handed)
        self.paused, self.closed = list[TP](), False

    def assign(self, _: Any) -> None: ...

    def consume(self, _most: int, timeout: float) -> list[Message]:
        if self.handed:
            return self.handed.pop(0)
        self.now += timeout
        return []

    def pause(self, tps: list[ck.TopicPartition]) -> None:
        self.paused += [TP(tp.topic, tp.partition) for tp in tps]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    def read(world: World, ends: dict[TP, int], **options: Any) -> Any:
        monkeypatch.setattr(reader.ck, "Consumer", lambda _: world)
        monkeypatch.setattr(reader, "time", SimpleNamespace(monotonic=lambda: world.now))
        cluster: Any = SimpleNamespace(config={})
        for tp, records, reached in reader.read_to_end(cluster, dict.fromkeys(ends, 0), ends, **options):
            yield tp, [m.offset() for m in records], reached

    return read


def records(tp: TP, *offsets: int) -> list[Message]:
    return [Message(tp, offset) for offset in offsets]


def error(tp: TP, offset: int, code: int = ck.KafkaError._PARTITION_EOF) -> Message:
    return Message(tp, offset, error=ck.KafkaError(code))


def test_a_partition_is_done_at_its_end_and_not_where_a_new_leader_ends_for_a_moment(read: Any) -> None:
    world = World(
        [*records(A, 0, 1), *records(B, 0), error(B, 1)],  # B has 5 records, and its new leader has heard of one
        [error(B, 4), error(A, 3)],
        [*records(B, 4, 6)],
        [*records(B, 7)],
    )
    found = list(read(world, {A: 3, B: 5}))  # what ends A is the marker of a transaction
    assert found == [(A, [0, 1], 2), (B, [0], 1), (B, [], 4), (A, [], 3), (B, [4, 6], 7)]
    assert (world.paused, world.closed, len(world.handed)) == ([A, B], True, 1)


def test_what_has_no_records_is_not_asked_for(read: Any) -> None:
    world = World()
    assert list(read(world, {A: 0})) == []
    assert not world.closed  # never opened


def test_silence_is_an_error_and_the_time_that_the_caller_takes_is_no_silence(read: Any) -> None:
    world = World(records(A, 0), [error(A, 1)])
    reading = read(world, {A: 3}, patience=5.0)
    for _ in range(2):
        next(reading)
        world.now += 1000
    with pytest.raises(BrokerError, match=r"nothing more could be read of t-0 for 5 s.*transaction.*find-hanging"):
        next(reading)
    assert 2005 < world.now < 2006
    assert world.closed


def test_errors_name_the_partition_or_else_the_topics(read: Any) -> None:
    with pytest.raises(BrokerError, match="cannot read t-1: "):
        list(read(World([error(B, 0, ck.KafkaError.OFFSET_OUT_OF_RANGE)]), {A: 1, B: 1}))
    with pytest.raises(BrokerError, match="cannot read t: "):
        list(read(World([error(TP("", 0), 0, ck.KafkaError.GROUP_AUTHORIZATION_FAILED)]), {A: 1, B: 1}))


def test_it_ends_when_the_assignment_is_void(read: Any) -> None:
    world, alive = World(records(A, 0), records(A, 1)), [True, False]
    assert list(read(world, {A: 2}, alive=lambda: alive.pop(0))) == [(A, [0], 1)]
    assert world.closed


def test_neither_is_the_registry_waited_for_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose broker died while it loaded ended as stuck: it read the registry for 90 s (seed 381747218)."""
    world = World()
    monkeypatch.setattr(reader.ck, "Consumer", lambda _: world)
    monkeypatch.setattr(reader, "time", SimpleNamespace(monotonic=lambda: world.now))
    ends = {OffsetSpec.earliest(): 0, OffsetSpec.latest(): 3}
    cluster: Any = SimpleNamespace(config={}, offsets=lambda tps, at: dict.fromkeys(tps, ends[at]))
    assert Registry(cluster, "app").read(alive=lambda: world.now < 1) == {}
    assert 1 <= world.now < 2
