"""A librdkafka producer under a transactional id, made anew where a request of its last transaction may still arrive.

When a connection breaks, or an answer does not come in time, librdkafka sends EndTxn and TxnOffsetCommit again on
another connection and says nothing. The first copy may be on its way still and reach the broker in the *next*
transaction, which it would end half-way, or whose offsets it would set back (hole j; Jepsen's "torn transactions").
Brokers refuse it by its epoch; KIP-890 gives each transaction one, but librdkafka (2.16) does not take part in that. So
we raise the epoch ourselves, by `init_transactions` of a new producer, before the next transaction begins.
"""

from __future__ import annotations

import re
import threading
from typing import Any

import confluent_kafka as ck

from millstream.errors import BrokerError
from millstream.logs import get_logger

_HARMLESS = re.compile(r"in state (INIT|DOWN|TRY_CONNECT|CONNECT)\b")
"""Nothing was sent on a connection that did not come about. Others count, also before a first request was sent: within
30 s librdkafka says a text that is the same as the last one only once."""

_GRACE = 2.0
"""Seconds beyond its timeout that a call may take."""

log = get_logger(__name__)


class _Connections:
    """librdkafka's logger: notes when a connection broke or a request timed out."""

    def __init__(self) -> None:
        self.broke = ""

    def log(self, _level: int, _template: str, facility: str, _client: str, text: str) -> None:
        """One line of librdkafka's log."""
        if facility == "REQTMOUT" or (facility == "FAIL" and not _HARMLESS.search(text)):
            self.broke = text


class TransactionalClient:
    """Blocking; used from one thread. `producer` is replaced by `refresh`."""

    producer: ck.Producer
    _connections: _Connections

    def __init__(self, config: dict[str, Any], name: str, timeout: float, start_timeout: float) -> None:
        """Seconds: `timeout` of transactions, `start_timeout` until the coordinator answers. Raises BrokerError."""
        self._name, self._timeout, self._start_timeout = name, timeout, start_timeout
        self._config = {
            **config,
            "transactional.id": name,
            "transaction.timeout.ms": int(timeout * 1000),
            "partitioner": "murmur2_random",  # hole m
            "retry.backoff.ms": 5,  # the default of 100 makes 9 transactions/s out of 87
            "compression.type": "lz4",
            "log_level": 6,  # tells of broken connections; nothing of it is shown
        }
        self._connect()

    def refresh(self) -> bool:
        """Call before a transaction begins. True if the producer was made anew, which fences whoever had the same id.

        Raises BrokerError.
        """
        if why := self._lost():
            log.warning("producer_renewed", transactional_id=self._name, description=why)
            self._connect()
        return bool(why)

    def send_offsets(self, offsets: list[ck.TopicPartition], group: bytes) -> None:
        """Add offsets to the open transaction. Raises KafkaException, `_TIMED_OUT` too: the transaction is undecided.

        librdkafka (2.16) bounds the requests in this call, not the call: where their answers were lost over broken
        connections it never came back, and the worker stood still with its partitions. So it is waited for in vain
        only so long.
        """
        ended: list[ck.KafkaException | None] = []

        def send() -> None:
            try:
                self.producer.send_offsets_to_transaction(offsets, group, self._timeout)
            except ck.KafkaException as exc:
                ended.append(exc)
            else:
                ended.append(None)

        thread = threading.Thread(target=send, name="send-offsets", daemon=True)
        thread.start()
        thread.join(self._timeout + _GRACE)
        if not ended:
            text = f"sending offsets to the transaction did not end within {self._timeout + _GRACE:g} s"
            raise ck.KafkaException(ck.KafkaError(ck.KafkaError._TIMED_OUT, text))
        if ended[0] is not None:
            raise ended[0]

    def _lost(self) -> str:
        self.producer.poll(0)  # serves the log: the line was queued before the request was sent again
        return self._connections.broke

    def _connect(self) -> None:
        connections = _Connections()
        producer = ck.Producer({**self._config, "logger": connections})
        try:
            producer.init_transactions(self._start_timeout)
        except ck.KafkaException as exc:
            raise BrokerError(f"transactional producer {self._name!r} cannot start: {exc.args[0].str()}") from exc
        self.producer, self._connections = producer, connections
