"""A producer that commits a source's position with its records (hole e): what Kafka Connect does since KIP-618.

The position stands in the metadata of a group offset, in the same transaction as the records it belongs to. A source
that is started again begins where the last committed transaction ended. `init_transactions` fences whoever fed under
the same id before, also one that was only paused, and decides its open transaction before the position is read.
"""

from __future__ import annotations

import struct
from typing import Any, NoReturn

import confluent_kafka as ck

from millstream import tracing
from millstream.cluster import TP, Cluster, client_config
from millstream.errors import BrokerError
from millstream.settings import Settings
from millstream.transactional import TransactionalClient

METADATA_BYTES = 4096
"""offset.metadata.max.bytes of the broker."""
_QUEUE_KBYTES = 64 * 1024


class FencedError(BrokerError):
    """Another feeder took over under the same transactional id."""


class TransactionalSource:
    """Sends the records of one source, with its position. Blocking; one thread."""

    def __init__(self, settings: Settings, name: str, topic: str, max_message_bytes: int) -> None:
        """`name` is stable for the source: transactional id and group of its position. Raises BrokerError."""
        self.name, self.topic = name, topic
        self._timeout = settings.transaction_timeout
        self._cluster = Cluster(client_config(settings), settings.request_timeout)
        self._request_timeout = settings.request_timeout
        self._open = False
        self._position: str | None = None
        self._failed: list[str] = []
        more = {
            "linger.ms": 5,
            "queue.buffering.max.kbytes": _QUEUE_KBYTES,
            "message.max.bytes": max_message_bytes,
            "batch.size": min(max_message_bytes, 1_000_000),  # the topic's limit holds for a batch of them too
        }
        self._client = TransactionalClient(
            self._cluster.config | more, name, self._timeout, start_timeout=settings.request_timeout * 2
        )

    def position(self) -> str | None:
        """The committed position; None if the source was never begun. Raises BrokerError."""
        tp = TP(self.topic, 0)
        # Stable at once: init_transactions has decided what a predecessor left open.
        offset, metadata = self._cluster.stable_offsets(self.name, [tp], self._request_timeout)[tp]
        self._position = metadata if offset >= 0 else None
        return self._position

    def _begin(self) -> None:
        before = self._position
        # A new epoch fences a feeder that took over from us, too: what it committed tells.
        if self._client.refresh() and self.position() != before:
            raise FencedError(f"another feeder of topic {self.topic!r} took over; this one has ended")
        self._call("begin a transaction", self._client.producer.begin_transaction)

    def send(
        self,
        key: bytes,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
        on_offset: Any = None,
        topic: str | None = None,
    ) -> None:
        """Add a record to the transaction; waits while the queue is full. Raises BrokerError.

        `topic`: another one than the source's own, which then only carries its position.
        """
        if not self._open:
            self._begin()
            self._open = True

        def delivered(error: ck.KafkaError | None, message: ck.Message) -> None:
            if error is not None:
                self._failed.append(error.str())
            elif on_offset is not None:
                on_offset(message.offset())

        told = tracing.added(headers)
        while True:
            try:
                self._client.producer.produce(topic or self.topic, value, key, headers=told, on_delivery=delivered)
            except BufferError:
                self._client.producer.poll(0.1)
            except ck.KafkaException as exc:
                self._raise("send a record", exc)
            else:
                break
        self._client.producer.poll(0)

    def flush(self) -> None:
        """Wait until what was sent is in the log. Raises BrokerError."""
        left = self._client.producer.flush(self._timeout)
        if left or self._failed:
            why = self._failed[0] if self._failed else f"{left} records not acknowledged within {self._timeout:g} s"
            self._abort()
            raise BrokerError(f"records for topic {self.topic!r} did not get into the log: {why}. {_AGAIN}")

    def commit(self, sent: int, position: str) -> None:
        """Commit what was sent, and the position behind it. `sent` counts the source's messages. Raises BrokerError."""
        if len(position.encode()) > METADATA_BYTES:
            raise ValueError(f"the position of {self.name!r} is longer than {METADATA_BYTES} bytes: {position[:200]}…")
        self.flush()
        at = ck.TopicPartition(self.topic, 0, sent, metadata=position)
        # No member of the group: the transactional id is the fence here.
        group = b"CGMDv2:" + struct.pack("<i", -1) + self.name.encode() + b"\0\0\x01"
        self._call("commit the position", lambda: self._client.send_offsets([at], group))
        self._call("commit", lambda: self._client.producer.commit_transaction(self._timeout))
        self._open, self._position = False, position

    def _call(self, what: str, call: Any) -> None:
        try:
            call()
        except ck.KafkaException as exc:
            self._raise(what, exc)

    def _raise(self, what: str, exc: ck.KafkaException) -> NoReturn:
        error: ck.KafkaError = exc.args[0]
        if error.code() in _FENCED:
            raise FencedError(
                f"another feeder of topic {self.topic!r} took over ({error.str()}); this one has ended"
            ) from exc
        self._abort()
        raise BrokerError(f"cannot {what}, topic {self.topic!r}: {error.str()}. {_AGAIN}") from exc

    def _abort(self) -> None:
        """Let the next life begin at once; if even this fails, its init_transactions aborts instead."""
        try:
            self._client.producer.abort_transaction(self._timeout)
        except ck.KafkaException:
            self._client.producer.purge()
        self._open = False


_AGAIN = "Start it again: it goes on at its last commit"
_FENCED = {ck.KafkaError._FENCED, ck.KafkaError.INVALID_PRODUCER_EPOCH, ck.KafkaError.PRODUCER_FENCED}
