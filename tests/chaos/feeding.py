"""Records with known content at a steady rate, from a thread."""

from __future__ import annotations

import json
import random
import threading

import pyarrow as pa
from confluent_kafka import Producer

SCHEMA = pa.schema([("id", pa.int64()), ("k", pa.string())])
ROWS = 5
"""Rows in an Arrow message, at most."""
KEYS = 48
"""Key k<n> always goes to partition n modulo the partitions."""


class Feeder:
    """Produces rows `{"id": n, "k": "k<m>"}` with rising ids. A seed gives the same records in the same order.

    As JSON a row is a record; as Arrow a record is an IPC stream of some rows.
    """

    def __init__(
        self, kafka: str, topic: str, partitions: int, seed: int, rate: float = 200.0, payload: str = "json"
    ) -> None:
        self._encode = {"json": self._json, "arrow": self._arrow}[payload]
        self._topic, self._partitions, self._rate = topic, partitions, rate
        self._random = random.Random(seed)
        self._producer = Producer({"bootstrap.servers": kafka, "enable.idempotence": True, "linger.ms": 5})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)
        self.sent = 0

    def send(self, count: int) -> None:
        """Produce so many, and wait until they are in the log."""
        self._produce(count)
        assert self._producer.flush(60) == 0

    def start(self) -> None:
        """Go on producing until `finish` or `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """End its thread."""
        self._stop.set()
        if self.running:
            self._thread.join()

    def finish(self) -> None:
        """End, with everything in the log."""
        self.stop()
        assert self._producer.flush(60) == 0

    @property
    def running(self) -> bool:
        """Whether it goes on producing."""
        return self._thread.is_alive()

    def _produce(self, count: int) -> None:
        for _ in range(count):
            key = self._random.randrange(KEYS)
            self._producer.produce(self._topic, self._encode(f"k{key}"), partition=key % self._partitions)
        self._producer.poll(0)

    def _json(self, key: str) -> bytes:
        self.sent += 1
        return json.dumps({"id": self.sent - 1, "k": key}).encode()

    def _arrow(self, key: str) -> bytes:
        rows = self._random.randint(1, ROWS)
        self.sent += rows
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SCHEMA) as stream:
            stream.write_batch(pa.record_batch([[*range(self.sent - rows, self.sent)], [key] * rows], schema=SCHEMA))
        return bytes(sink.getvalue())

    def _run(self) -> None:
        burst = max(1, int(self._rate / 10))
        while not self._stop.wait(burst / self._rate):
            self._produce(burst)
