"""Committing without transactions: at-least-once, for benchmarks (`MILLSTREAM_EXACTLY_ONCE=false`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import confluent_kafka as ck

from millstream.cluster import TP
from streams.engine.plan import Position
from streams.engine.transaction import Transaction, produce_all


class AtLeastOnceProducer:
    """Produces, waits until all is in the log, then has the offsets committed."""

    def __init__(self, config: dict[str, Any], commit: Callable[[dict[TP, Position]], None], timeout: float) -> None:
        self._commit, self._timeout = commit, timeout
        self._producer = ck.Producer({**config, "enable.idempotence": True, "partitioner": "murmur2_random"})

    def commit(self, txn: Transaction, metadata: bytes) -> None:
        """Blocking. Raises UndecidedTransactionError."""
        produce_all(self._producer, txn, self._timeout, ask_each=True)
        self._commit(txn.positions)
