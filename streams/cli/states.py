"""Reading the coordinator's table from outside: its changelog, committed changes only."""

from __future__ import annotations

import time

import confluent_kafka as ck

from millstream.cluster import client_config
from millstream.errors import BrokerError
from millstream.settings import Settings
from streams.ledger import BatchState, InstanceState, Ledger, batches_in


def changelog(settings: Settings) -> str:
    """Topic of the table `batches`, as Faust names it."""
    return f"{settings.group_id}-batches-changelog"


class States:
    """The states of all batches; `update` takes in what is new. Blocking. Use it as a context manager."""

    def __init__(self, settings: Settings) -> None:
        self._topic, self._timeout = changelog(settings), settings.request_timeout
        self._store: dict[bytes, bytes] = {}
        self._ledger = Ledger(self._store)
        self._behind: set[int] = set()
        self._assigned = False
        self.changes = 0
        """Changes seen so far."""
        self._consumer = ck.Consumer(
            {
                **client_config(settings),
                "group.id": "millstream-reader",  # never joined, never committed
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 100,
            }
        )

    def __enter__(self) -> States:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def load(self) -> States:
        """Everything up to now. No workers were ever started: nothing. Raises BrokerError."""
        deadline = time.monotonic() + self._timeout
        self.update(0)
        while self._behind:
            self.update(0.2)
            if time.monotonic() > deadline:
                raise BrokerError(f"topic {self._topic!r} could not be read to its end within {self._timeout:g} s")
        return self

    def update(self, timeout: float) -> None:
        """What was committed since; waits at most `timeout` seconds for something. Raises BrokerError."""
        if not self._assigned:
            self._assign()
            if not self._assigned:
                time.sleep(timeout)
                return
        try:
            messages = self._consumer.consume(1000, timeout)
        except ck.KafkaException as exc:
            raise BrokerError(f"cannot read topic {self._topic!r}: {exc.args[0].str()}") from exc
        for message in messages:
            error = message.error()
            if error is not None:
                if error.code() == ck.KafkaError._PARTITION_EOF:
                    self._behind.discard(message.partition() or 0)
                elif not error.retriable():
                    raise BrokerError(f"cannot read topic {self._topic!r}: {error.str()}")
                continue
            self.changes += 1
            key, value = message.key() or b"", message.value()
            if value is None:
                self._store.pop(key, None)
            else:
                self._store[key] = value

    def batch(self, key: str) -> BatchState | None:
        """State of a batch."""
        return self._ledger.batch(key)

    def instance(self, key: str, instance: str) -> InstanceState | None:
        """State of an instance; None before it began."""
        return self._ledger.instance(key, instance)

    def batches(self) -> dict[str, BatchState]:
        """Batch.key -> state, oldest batch first."""
        return dict(sorted(batches_in(self._store)))

    def _assign(self) -> None:
        try:
            topic = self._consumer.list_topics(self._topic, timeout=self._timeout).topics[self._topic]
        except ck.KafkaException as exc:
            raise BrokerError(f"cannot ask for topic {self._topic!r}: {exc.args[0].str()}") from exc
        if topic.error is not None or not topic.partitions:
            return
        self._behind = set(topic.partitions)
        self._consumer.assign([ck.TopicPartition(self._topic, p, ck.OFFSET_BEGINNING) for p in topic.partitions])
        self._assigned = True
