"""Records with known content at a steady rate, from a thread."""

from __future__ import annotations

import json
import random
import threading

from confluent_kafka import Producer

KEYS = 48
"""Key k<n> always goes to partition n modulo the partitions."""


class Feeder:
    """Produces `{"id": n, "k": "k<m>"}` with rising ids. A seed gives the same records in the same order."""

    def __init__(self, kafka: str, topic: str, partitions: int, seed: int, rate: float = 200.0) -> None:
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
        """Go on producing until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """End, with everything in the log."""
        self._stop.set()
        self._thread.join()
        assert self._producer.flush(60) == 0

    def _produce(self, count: int) -> None:
        for _ in range(count):
            key = self._random.randrange(KEYS)
            value = json.dumps({"id": self.sent, "k": f"k{key}"}).encode()
            self._producer.produce(self._topic, value, partition=key % self._partitions)
            self.sent += 1
        self._producer.poll(0)

    def _run(self) -> None:
        burst = max(1, int(self._rate / 10))
        while not self._stop.wait(burst / self._rate):
            self._produce(burst)
