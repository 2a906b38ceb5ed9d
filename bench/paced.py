"""Produces BENCH_RECORDS records at BENCH_RATE per second.

`ts` is when each was given to the producer: CLOCK_MONOTONIC in nanoseconds, which all processes of a machine share.
"""

from __future__ import annotations

import os
import time

import confluent_kafka as ck
import msgspec

from bench.data import PARTITIONS, record


def main() -> None:
    """Every millisecond what is due."""
    total, rate, topic = int(os.environ["BENCH_RECORDS"]), int(os.environ["BENCH_RATE"]), os.environ["BENCH_TOPIC"]
    producer = ck.Producer({"bootstrap.servers": os.environ["BENCH_SERVERS"], "linger.ms": 1})
    began, sent = time.monotonic(), 0
    while sent < total:
        due = min(total, int((time.monotonic() - began) * rate))
        for i in range(sent, due):
            value = record(i) | {"ts": time.monotonic_ns()}
            producer.produce(topic, msgspec.json.encode(value), partition=i % PARTITIONS)
        sent = due
        producer.poll(0)
        time.sleep(0.001)
    if left := producer.flush(30):
        raise RuntimeError(f"{left} records did not get into topic {topic}")


if __name__ == "__main__":
    main()
