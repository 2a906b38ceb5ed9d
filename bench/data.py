"""The fixed topics: JSON records one by one, Arrow messages of 8192 rows, keys to count."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import confluent_kafka as ck
import msgspec
import numpy as np
import pyarrow as pa
from confluent_kafka.admin import AdminClient, NewTopic

PARTITIONS = 4
MESSAGE_ROWS = 8192

Record = tuple[int, bytes | None, bytes]
"""Partition, key, value."""

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("instance", pa.string()),
        ("ts", pa.int64()),
        ("price", pa.float64()),
        ("qty", pa.int64()),
        ("side", pa.string()),
        ("symbol", pa.string()),
        ("venue", pa.string()),
        ("src", pa.string()),
    ]
)


def record(i: int) -> dict[str, Any]:
    """Record number i: about 237 bytes as JSON."""
    return {
        "id": i,
        "instance": f"10.0.0.{i % 50}:6379",
        "ts": 1_700_000_000_000 + i,
        "price": i * 0.37 % 1000,
        "qty": i % 977,
        "side": "buy" if i % 2 else "sell",
        "symbol": f"SYM{i % 300}",
        "venue": "XNAS",
        "src": f"feed-{i % 7}-{'abcdefghij' * 8}",
    }


def json_records(count: int, partitions: int = PARTITIONS) -> Iterable[Record]:
    """`count` JSON records."""
    encode = msgspec.json.encode
    return ((i % partitions, None, encode(record(i))) for i in range(count))


def backlog(count: int) -> Iterable[Record]:
    """`count` JSON records, the same 100,000 over and over: made faster."""
    some = list(json_records(min(count, 100_000)))
    return itertools.islice(itertools.cycle(some), count)


def arrow_batches(count: int) -> Iterable[pa.RecordBatch]:
    """Batches of MESSAGE_ROWS like the JSON records, id and ts going on; `count` must be a multiple of it."""
    first = pa.RecordBatch.from_pylist([record(i) for i in range(MESSAGE_ROWS)], SCHEMA)
    for at in range(0, count, MESSAGE_ROWS):
        ids = np.arange(at, at + MESSAGE_ROWS)
        batch = first.set_column(0, SCHEMA.field("id"), pa.array(ids))
        yield batch.set_column(2, SCHEMA.field("ts"), pa.array(ids + 1_700_000_000_000))


def arrow_records(count: int) -> Iterable[Record]:
    """(partition, key, value) of the Arrow messages."""
    for n, batch in enumerate(arrow_batches(count)):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SCHEMA) as writer:
            writer.write_batch(batch)
        yield n % PARTITIONS, None, sink.getvalue().to_pybytes()


def keyed_records(count: int, keys: int) -> Iterable[Record]:
    """(partition, key, value) to count by key; a key is always in the same partition."""
    picks = random.Random(1)
    for _ in range(count):
        n = picks.randrange(keys)
        key = f"user-{n:08d}"
        yield n % PARTITIONS, key.encode(), b'{"user":"%b","amount":%d}' % (key.encode(), n % 97)


def changelog_records(keys: int) -> Iterable[Record]:
    """(partition, key, value) of a changelog as Faust's JSON serializers write it: one record per key."""
    for n in range(keys):
        yield n % PARTITIONS, b'"user-%08d"' % n, b"%d" % (n % 1000)


def create(servers: str, topic: str, partitions: int = PARTITIONS, **config: str) -> None:
    """Create a topic."""
    new = NewTopic(topic, partitions, 1, config={"max.message.bytes": "16777216", **config})
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 2})
    admin.create_topics([new])[topic].result(120)


def fill(servers: str, topic: str, records: Iterable[Record], partitions: int = PARTITIONS) -> None:
    """Create the topic and produce the records, uncompressed, in log batches of up to 256 KiB."""
    create(servers, topic, partitions)
    failed: list[str] = []
    producer = ck.Producer(
        {
            "bootstrap.servers": servers,
            "linger.ms": 50,
            "batch.size": 1 << 18,
            "message.max.bytes": 16 << 20,
            "queue.buffering.max.messages": 500_000,
            "delivery.report.only.error": True,
        }
    )

    def refused(error: ck.KafkaError | None, _message: ck.Message) -> None:
        if error is not None:
            failed.append(error.str())

    for n, (partition, key, value) in enumerate(records):
        while True:
            try:
                producer.produce(topic, value, key, partition, on_delivery=refused)
                break
            except BufferError:
                producer.poll(0.1)
        if n % 10_000 == 0:
            producer.poll(0)
    if left := producer.flush(120):
        raise RuntimeError(f"{left} records did not get into topic {topic}")
    if failed:
        raise RuntimeError(f"topic {topic}: {failed[0]}")


def drop(servers: str, *topics: str) -> None:
    """Delete topics, to give their pages in memory back."""
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 2})
    for future in admin.delete_topics(list(topics)).values():
        future.result(120)


def expected_offsets(servers: str, topic: str) -> dict[int, np.ndarray[Any, np.dtype[np.int64]]]:
    """Offsets that hold a record, by partition: the topics are filled without transactions, so all of them do."""
    consumer = ck.Consumer({"bootstrap.servers": servers, "group.id": "bench-ends"})
    try:
        return {
            p: np.arange(*consumer.get_watermark_offsets(ck.TopicPartition(topic, p), 10), dtype=np.int64)
            for p in consumer.list_topics(topic, 10).topics[topic].partitions
        }
    finally:
        consumer.close()


def sum_of_values(servers: str, topic: str, number: Callable[[bytes], int]) -> int:
    """Sum of the committed last value of every key: what a table of counts adds up to."""
    return sum({message.key(): number(message.value()) for message in committed(servers, topic)}.values())


def committed(servers: str, topic: str) -> Iterator[ck.Message]:
    """Every committed record, up to the end as it is now."""
    from millstream.cluster import Cluster  # not what contenders pay for, and not in every one's environment
    from streams.engine.reader import read_committed

    return read_committed(Cluster({"bootstrap.servers": servers, "log_level": 2}), topic)
