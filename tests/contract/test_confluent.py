"""What the engine leans on in confluent-kafka and rocksdict, against a real broker."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import pytest
import rocksdict
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from millstream.cluster import TP, Cluster
from millstream.errors import BrokerError
from streams.engine.transaction import _FENCED, group_metadata
from tests.support.waiting import wait_until


@contextlib.contextmanager
def member(kafka: str, group: str, topic: str) -> Iterator[ck.Consumer]:
    """A consumer that has joined its group."""
    consumer = ck.Consumer(
        {"bootstrap.servers": kafka, "group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    )
    consumer.subscribe([topic])
    try:
        wait_until(lambda: consumer.poll(0.05) or consumer.assignment(), 30, "the group to be joined")
        yield consumer
    finally:
        consumer.close()


def transactional(kafka: str, name: str) -> ck.Producer:
    producer = ck.Producer(
        {"bootstrap.servers": kafka, "transactional.id": name, "retry.backoff.ms": 5, "linger.ms": 0}
    )
    producer.init_transactions(30)
    return producer


def serialized(consumer: ck.Consumer) -> bytes:
    """librdkafka's own bytes of the group metadata."""
    metadata = consumer.consumer_group_metadata()
    assert isinstance(metadata, bytes), "no longer bytes: streams/engine/transaction.py passes bytes of its own making"
    return metadata


def test_group_metadata_is_byte_for_byte_what_librdkafka_serialises(kafka: str, make_topic: Any, unique: Any) -> None:
    group = unique("group")
    with member(kafka, group, make_topic()) as consumer:
        theirs = serialized(consumer)
        generation = int.from_bytes(theirs[7:11], "little", signed=True)
        member_id = consumer.memberid()
        assert generation > 0
        assert group_metadata(group, generation, member_id) == theirs, (
            "librdkafka serialises group metadata in another way: streams/engine/transaction.py group_metadata; with "
            "a wrong one, commits fail or are not fenced"
        )


def test_offsets_can_be_sent_with_serialised_metadata_and_stale_ones_are_fenced(
    kafka: str, make_topic: Any, unique: Any
) -> None:  # T7, rule 11
    topic, group = make_topic(), unique("group")
    producer = transactional(kafka, unique("txn"))
    with member(kafka, group, topic) as consumer:
        current = serialized(consumer)
        generation = int.from_bytes(current[7:11], "little", signed=True)
        producer.begin_transaction()
        producer.send_offsets_to_transaction([ck.TopicPartition(topic, 0, 0, metadata="ms2|a|1")], current, 30)
        producer.commit_transaction(30)
        for metadata, expected in (
            (group_metadata(group, generation + 1, consumer.memberid()), ck.KafkaError.ILLEGAL_GENERATION),
            (group_metadata(group, generation, "somebody-else"), ck.KafkaError.UNKNOWN_MEMBER_ID),
        ):
            producer.begin_transaction()
            with pytest.raises(ck.KafkaException) as refused:
                producer.send_offsets_to_transaction([ck.TopicPartition(topic, 0, 5)], metadata, 30)
            error = refused.value.args[0]
            assert error.code() == expected
            assert error.code() in _FENCED
            assert error.txn_requires_abort()
            assert not error.fatal(), "streams/engine/transaction.py would end the process instead of waiting"
            producer.abort_transaction(30)
    found = Cluster({"bootstrap.servers": kafka}).stable_offsets(group, [TP(topic, 0)], 10, lambda: True)
    assert found == {TP(topic, 0): (0, "ms2|a|1")}


def test_an_open_transaction_makes_its_offsets_unstable(kafka: str, make_topic: Any, unique: Any) -> None:  # rule 4a
    topic, group = make_topic(), unique("group")
    cluster, tp = Cluster({"bootstrap.servers": kafka}), TP(topic, 0)
    producer = transactional(kafka, unique("txn"))
    with member(kafka, group, topic) as consumer:
        found = cluster.stable_offsets(group, [tp], 10)
        assert found == {tp: (-1001, "")}, "no offset: streams/engine/recovery.py looks for < 0"
        producer.begin_transaction()
        producer.send_offsets_to_transaction([ck.TopicPartition(topic, 0, 1)], serialized(consumer), 30)
        with pytest.raises(BrokerError, match="still not stable"):
            # Anything else: a successor would start from a stale offset (millstream/cluster.py).
            cluster.stable_offsets(group, [tp], 0.6)
        producer.commit_transaction(30)
        assert cluster.stable_offsets(group, [tp], 10)[tp][0] == 1


def test_topic_ids_come_with_the_description_and_change_when_a_topic_is_made_anew(
    kafka: str, make_topic: Any, unique: Any, admin: AdminClient
) -> None:  # hole b
    from tests.support.kafka import create_topic

    cluster, name = Cluster({"bootstrap.servers": kafka}), unique("anew")
    create_topic(admin, name, 3)
    first = cluster.topics([name, "no-such-topic"])
    assert list(first) == [name]
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", first[name].id), (
        f"topic id {first[name].id!r}: millstream/cluster.py, and every chunk's identity"
    )
    assert first[name].partitions == 3
    admin.delete_topics([name], operation_timeout=30)[name].result(30)
    wait_until(lambda: not cluster.topics([name]), 20, "the topic to be gone")
    create_topic(admin, name, 3)
    assert cluster.topics([name])[name].id != first[name].id
    admin.delete_topics([name])[name].result(30)


def test_produce_takes_its_arguments_in_this_order(kafka: str, make_topic: Any) -> None:
    topic, told = make_topic(), []
    producer = ck.Producer({"bootstrap.servers": kafka})
    producer.produce(topic, b"value", b"key", 0, lambda e, m: told.append((e, m)), None, 1234, [("h", b"x")])
    producer.flush(30)
    error, message = told[0]
    assert error is None
    assert (message.topic(), message.partition(), message.offset()) == (topic, 0, 0), "positions of a changelog"
    with member(kafka, topic, topic) as consumer:
        consumer.seek(ck.TopicPartition(topic, 0, 0))
        read = wait_until(lambda: consumer.poll(0.1), 20, "the record")
        assert (read.key(), read.value(), read.timestamp()[1], read.headers()) == (
            b"key",
            b"value",
            1234,
            [("h", b"x")],
        ), "Producer.produce takes its arguments in another order: streams/engine/transaction.py and producer.py"


def test_keys_land_where_java_and_aiokafka_put_them(kafka: str, make_topic: Any) -> None:  # hole m
    from aiokafka.partitioner import DefaultPartitioner

    topic, partitions = make_topic(partitions=7), list(range(7))
    landed: dict[bytes, int] = {}
    producer = ck.Producer({"bootstrap.servers": kafka, "partitioner": "murmur2_random"})
    keys = [b"key-%d" % i for i in range(200)] + [b"\xff\x00", "\u952e".encode()]
    for key in keys:
        producer.produce(topic, b"", key, -1, lambda _, m: landed.update({m.key(): m.partition()}))
    producer.flush(30)
    partition = DefaultPartitioner()
    assert landed == {key: partition(key, partitions, partitions) for key in keys}


def test_rocksdict_writes_batches_raw_and_whole(tmp_path: Path) -> None:
    """tables/store.py."""
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    db = rocksdict.Rdict(str(tmp_path / "db"), options)
    batch = rocksdict.WriteBatch(raw_mode=True)
    batch.put(b"a", b"1")
    batch.put(b"b", b"2")
    batch.delete(b"a")
    assert db.get(b"b") is None
    db.write(batch)
    assert (db.get(b"a"), db.get(b"b"), list(db.items())) == (None, b"2", [(b"b", b"2")])
    with pytest.raises(Exception, match=r"(?i)lock"):
        rocksdict.Rdict(str(tmp_path / "db"), options)
    db.close()
    assert "raw_mode" in str(inspect.signature(rocksdict.WriteBatch)) or rocksdict.WriteBatch(raw_mode=True)


def test_a_record_that_does_not_get_into_the_log_fails_its_transaction_though_nobody_listens(
    kafka: str, unique: Any
) -> None:
    """streams/engine/transaction.py asks about the last record of a changelog only."""
    topic = unique("small")
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, 1, 1, config={"max.message.bytes": "2000"})])[topic].result(30)
    producer = transactional(kafka, unique("unheard"))
    producer.begin_transaction()
    producer.produce(topic, b"x" * 5000, b"refused", 0)
    assert producer.flush(30) == 0
    with pytest.raises(ck.KafkaException) as failed:
        producer.commit_transaction(30)
    assert failed.value.args[0].txn_requires_abort()
    producer.abort_transaction(30)
