"""Reading partitions from a position to where their log ends now: committed records only. Blocking."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

import confluent_kafka as ck
from confluent_kafka.admin import OffsetSpec

from millstream.cluster import TP, Cluster
from millstream.errors import BrokerError

RECORDS = 20_000
"""Records handed over at a time: large enough for speed, small enough for memory with 1 KiB values."""

_READING = {
    "group.id": "millstream-reader",  # never joined, never committed
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "enable.partition.eof": True,
    "auto.offset.reset": "error",  # what retention takes away while we read is not passed over
    "fetch.wait.max.ms": 20,
    "queued.min.messages": 200_000,
    "fetch.queue.backoff.ms": 5,  # by default a full queue keeps the partition from fetching for 1 s
    "queued.max.messages.kbytes": 64 << 10,
    "max.poll.interval.ms": 86_400_000,  # who takes the records may wait long for a database
}


def read_to_end(
    cluster: Cluster,
    starts: Mapping[TP, int],
    ends: Mapping[TP, int] | None = None,
    alive: Callable[[], bool] = lambda: True,
    patience: float = 90.0,
    at_once: int = RECORDS,
) -> Generator[tuple[TP, list[ck.Message], int], None, None]:
    """(partition, records, next offset) until every partition's position has reached its end.

    The next offset counts control records and those of aborted transactions too; the last records of a partition may
    lie behind its end. Without `ends`, the log ends as of now, an open transaction's records included: the generator
    then waits until that transaction is decided. An end that a new leader does not show yet is waited for. It ends
    early once `alive` is false. Raises BrokerError if nothing more could be read for `patience` seconds; those that the
    caller takes do not count.
    """
    ends = cluster.offsets(starts, OffsetSpec.latest()) if ends is None else ends
    left = [tp for tp, start in starts.items() if start < ends[tp]]
    if not left:
        return
    consumer = ck.Consumer({**cluster.config, **_READING})
    try:
        consumer.assign([ck.TopicPartition(*tp, starts[tp]) for tp in left])
        last = time.monotonic()
        while left and alive():
            messages = consumer.consume(at_once, 0.2)
            for tp, (records, reached) in _by_partition(messages, left).items():
                yield tp, records, reached
                if reached >= ends[tp] and tp in left:
                    left.remove(tp)
                    consumer.pause([ck.TopicPartition(*tp)])
            if messages:
                last = time.monotonic()
            elif time.monotonic() - last > patience:
                raise BrokerError(
                    f"nothing more could be read of {', '.join(f'{tp.topic}-{tp.partition}' for tp in sorted(left))} "
                    f"for {patience:.0f} s, and their ends were not reached: the broker does not answer, or a "
                    "transaction over them is open that its producer neither ends nor is fenced in. Find it with "
                    "`kafka-transactions.sh find-hanging`"
                )
    finally:
        consumer.close()


def read_committed(cluster: Cluster, topic: str, patience: float = 90.0) -> Iterator[ck.Message]:
    """What the topic holds now, each partition's records in order; nothing if there is no such topic.

    Records of an open transaction are not waited for. Raises BrokerError as `read_to_end`.
    """
    info = cluster.topics([topic]).get(topic)
    if info is None:
        return
    tps = [TP(topic, p) for p in range(info.partitions)]
    ends = cluster.offsets(tps, OffsetSpec.latest(), ck.IsolationLevel.READ_COMMITTED)
    starts = cluster.offsets(tps, OffsetSpec.earliest())
    for _, messages, _ in read_to_end(cluster, starts, ends, patience=patience):
        yield from messages


def _by_partition(messages: Iterable[ck.Message], tps: Iterable[TP]) -> dict[TP, tuple[list[ck.Message], int]]:
    """Records and next offset of each partition that the messages are of."""
    records: dict[TP, list[ck.Message]] = defaultdict(list)
    ended: dict[TP, int] = {}
    for message in messages:
        tp = TP(message.topic() or "", message.partition() or 0)
        error = message.error()
        if error is None:
            records[tp].append(message)
        elif error.code() == ck.KafkaError._PARTITION_EOF:
            ended[tp] = message.offset() or 0
        else:
            of_all = ", ".join(sorted({tp.topic for tp in tps}))  # of the group's coordinator, say
            raise BrokerError(f"cannot read {f'{tp.topic}-{tp.partition}' if tp.topic else of_all}: {error.str()}")
    after = {tp: (found[-1].offset() or 0) + 1 for tp, found in records.items()}
    return {tp: (records[tp], max(after.get(tp, 0), ended.get(tp, 0))) for tp in (*records, *ended)}
