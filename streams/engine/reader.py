"""Reading partitions from a position to where their log ends now: committed records only. Blocking."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import confluent_kafka as ck
from confluent_kafka.admin import OffsetSpec

from millstream.cluster import TP, Cluster
from millstream.errors import BrokerError

RECORDS = 20_000
"""Records handed over at a time: large enough for speed, small enough for memory with 1 KiB values."""


def read_to_end(
    cluster: Cluster,
    starts: Mapping[TP, int],
    ends: Mapping[TP, int] | None = None,
    alive: Callable[[], bool] = lambda: True,
    patience: float = 90.0,
) -> Iterator[tuple[TP, list[ck.Message], int]]:
    """(partition, records, next offset) until every partition's position has reached its end.

    The next offset counts control records and those of aborted transactions too. Without `ends`, the log ends as of
    now, an open transaction's records included: the generator then waits until that transaction is decided. It ends
    early once `alive` is false. Raises BrokerError if nothing more could be read for `patience` seconds.
    """
    ends = cluster.offsets(starts, OffsetSpec.latest()) if ends is None else ends
    left = {tp: ends[tp] for tp, start in starts.items() if start < ends[tp]}
    if not left:
        return
    consumer = ck.Consumer(
        {
            **cluster.config,
            "group.id": "millstream-reader",  # never joined, never committed
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 20,
            "queued.min.messages": 200_000,
            "fetch.queue.backoff.ms": 5,  # by default a full queue keeps the partition from fetching for 1 s
            "queued.max.messages.kbytes": 64 << 10,
        }
    )
    try:
        consumer.assign([ck.TopicPartition(*tp, starts[tp]) for tp in left])
        last = time.monotonic()
        while left and alive():
            found: dict[TP, list[ck.Message]] = defaultdict(list)
            position: dict[TP, int] = {}
            if time.monotonic() - last > patience:
                raise BrokerError(
                    f"nothing more could be read of {', '.join(f'{tp.topic}-{tp.partition}' for tp in sorted(left))} "
                    f"for {patience:.0f} s, and their ends were not reached: the broker does not answer, or a "
                    "transaction over them is open that its producer neither ends nor is fenced in. Find it with "
                    "`kafka-transactions.sh find-hanging`"
                )
            for message in consumer.consume(RECORDS, 0.2):
                tp = TP(message.topic() or "", message.partition() or 0)
                error = message.error()
                if error is None:
                    found[tp].append(message)
                elif error.code() == ck.KafkaError._PARTITION_EOF:
                    position[tp] = message.offset() or 0
                else:
                    of_all = ", ".join(sorted({tp.topic for tp in left}))  # of the group's coordinator, say
                    raise BrokerError(
                        f"cannot read {f'{tp.topic}-{tp.partition}' if tp.topic else of_all}: {error.str()}"
                    )
            for tp in {**found, **position}:
                records = found[tp]
                after = (records[-1].offset() or 0) + 1 if records else 0
                reached = max(after, position.get(tp, 0))
                yield tp, records, reached
                if reached >= ends[tp]:
                    left.pop(tp, None)
            if found:
                last = time.monotonic()
    finally:
        consumer.close()
