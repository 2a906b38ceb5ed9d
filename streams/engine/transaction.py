"""One librdkafka transactional producer per worker, with the consumer's generation as a fence (KIP-447).

aiokafka cannot send the generation, so a paused worker's late commit would be accepted; hence librdkafka. All calls run
in one thread of their own. What cannot be decided ends the process: its successor's `init_transactions` raises the
epoch before the next begin, as we do where a connection broke in a transaction that was decided (hole j).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import confluent_kafka as ck

from millstream.cluster import TP
from millstream.errors import MillstreamError
from millstream.failpoints import declare, failpoint
from millstream.transactional import TransactionalClient
from streams.engine.chunk import Output
from streams.engine.plan import Position

BEGUN = declare("txn.begun", "transaction begun, nothing produced")
PRODUCED = declare("txn.produced", "all records flushed, offsets not sent")
OFFSETS_SENT = declare("txn.offsets_sent", "offsets sent to the transaction, not committed")
COMMITTED = declare("txn.committed", "transaction committed, RocksDB not written")

_FENCED = {
    ck.KafkaError.ILLEGAL_GENERATION,
    ck.KafkaError.UNKNOWN_MEMBER_ID,
    ck.KafkaError.REBALANCE_IN_PROGRESS,
    ck.KafkaError.FENCED_INSTANCE_ID,
}


class PartitionsLostError(MillstreamError):
    """The group moved on: this worker's generation is stale, and nothing of the transaction took effect."""


class UndecidedTransactionError(MillstreamError):
    """Nobody here can tell whether the transaction took effect. The process must end; its successor finds out."""


def group_metadata(group: str, generation: int, member: str) -> bytes:
    """What librdkafka's `rd_kafka_consumer_group_metadata_write` writes, for a dynamic member.

    Raises ValueError for generation -1 or an empty member: the broker accepts those without any fencing.
    """
    if generation < 0 or not member:
        raise ValueError(f"generation {generation} of member {member!r} would commit unfenced")
    return b"CGMDv2:" + struct.pack("<i", generation) + group.encode() + b"\0" + member.encode() + b"\0\x01"


@dataclass(slots=True)
class ChangelogWrite:
    """Changes of one table partition; `next_offset` is filled while the transaction runs."""

    topic: str
    partition: int
    changes: Collection[tuple[bytes, bytes | None]]
    next_offset: int = 0


@dataclass(slots=True)
class Transaction:
    """What one commit cycle puts into one transaction."""

    positions: dict[TP, Position] = field(default_factory=dict)
    """Every partition that the transaction touches, plan-only ones too: that is what fences (rule 3)."""
    outputs: list[Output] = field(default_factory=list)
    changelogs: list[ChangelogWrite] = field(default_factory=list)


class TransactionalProducer:
    """The worker's producer. Blocking; used from one thread."""

    def __init__(
        self, config: dict[str, Any], transactional_id: str, timeout: float, max_message_bytes: int = 8 << 20
    ) -> None:
        self._timeout = timeout
        more = {
            "linger.ms": 0,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 1 << 20,
            "message.max.bytes": max_message_bytes,
        }
        self._client = TransactionalClient(config | more, transactional_id, timeout, start_timeout=60)

    def commit(self, txn: Transaction, metadata: bytes) -> None:
        """Run one transaction. Raises PartitionsLostError (aborted) or UndecidedTransactionError."""
        self._client.refresh()
        producer = self._client.producer
        try:
            producer.begin_transaction()
            failpoint(BEGUN)
            produce_all(producer, txn, self._timeout)
            failpoint(PRODUCED)
            # Last, so that the generation is checked after every record is in the log (rule 2).
            offsets = [ck.TopicPartition(*tp, p.offset, metadata=p.metadata) for tp, p in txn.positions.items()]
            self._client.send_offsets(offsets, metadata)
            failpoint(OFFSETS_SENT)
            producer.commit_transaction(self._timeout)
        except ck.KafkaException as exc:
            self._abort(exc)
        failpoint(COMMITTED)

    def _abort(self, exc: ck.KafkaException) -> None:
        error = exc.args[0]
        if error.fatal() or not error.txn_requires_abort():
            raise UndecidedTransactionError(f"transaction: {error.name()}: {error.str()}") from exc
        try:
            self._client.producer.abort_transaction(self._timeout)
        except ck.KafkaException as again:
            raise UndecidedTransactionError(f"abort after {error.name()}: {again.args[0].str()}") from again
        if error.code() in _FENCED:
            raise PartitionsLostError(f"{error.name()}: {error.str()}") from exc
        raise UndecidedTransactionError(f"transaction aborted: {error.name()}: {error.str()}") from exc


def produce_all(producer: ck.Producer, txn: Transaction, timeout: float, *, ask_each: bool = False) -> None:
    """Produce a transaction's records and wait until they are in the log. Raises UndecidedTransactionError.

    Of a changelog only the last record is asked about, which costs a third: a record that does not get into the log
    fails the whole transaction. Without one, `ask_each`.
    """
    failed: list[str] = []
    sent = 0

    def on_output(error: ck.KafkaError | None, message: ck.Message) -> None:
        if error is not None:
            failed.append(f"topic {message.topic()}: {error.str()}")

    def position_noter(log: ChangelogWrite) -> Callable[[ck.KafkaError | None, ck.Message], None]:
        def note(error: ck.KafkaError | None, message: ck.Message) -> None:
            if error is not None:
                failed.append(f"changelog {log.topic}: {error.str()}")
            else:
                log.next_offset = max(log.next_offset, (message.offset() or 0) + 1)

        return note

    def records() -> Iterator[tuple[Any, ...]]:
        for o in txn.outputs:
            yield o.topic, o.value, o.key, o.partition, on_output, None, o.timestamp_ms, list(o.headers)
        for log in txn.changelogs:
            note = position_noter(log)
            last = len(log.changes) - 1
            for n, (key, value) in enumerate(log.changes):
                yield log.topic, value, key, log.partition, note if ask_each or n == last else None

    deadline = time.monotonic() + timeout
    for record in records():
        while True:
            try:
                producer.produce(*record)
            except BufferError:  # the queue is full: wait until some of it is in the log
                producer.poll(0.1)
                if time.monotonic() > deadline:
                    raise UndecidedTransactionError(
                        f"records of the transaction did not get into the log: {sent} were queued within {timeout} s"
                    ) from None
            else:
                break
        sent += 1
        if sent % 4096 == 0:
            producer.poll(0)
    left = producer.flush(timeout) if sent else 0
    if left or failed:
        why = failed[0] if failed else f"{left} records not acknowledged within {timeout} s"
        raise UndecidedTransactionError(f"records of the transaction did not get into the log: {why}")
