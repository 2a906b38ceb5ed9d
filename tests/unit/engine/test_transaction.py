"""Producing a transaction's records when the producer's queue is full."""

from __future__ import annotations

from typing import Any

import pytest

from streams.engine.chunk import Output
from streams.engine.transaction import Transaction, UndecidedTransactionError, produce_all

ROOM = 10


class Queue:
    """A producer with room for ROOM records until somebody polls; `stuck`: not even then."""

    def __init__(self, stuck: bool = False) -> None:
        self.held, self.sent, self.stuck = 0, 0, stuck

    def produce(self, *_: Any) -> None:
        if self.held == ROOM:
            raise BufferError
        self.held += 1
        self.sent += 1

    def poll(self, _seconds: float) -> None:
        self.held = self.held if self.stuck else 0

    def flush(self, _seconds: float) -> int:
        return 0


def test_more_records_than_the_queue_takes_wait_for_room() -> None:
    queue: Any = Queue()
    produce_all(queue, Transaction(outputs=[Output("t", None, b"")] * 95), 5)
    assert queue.sent == 95


def test_a_queue_that_stays_full_ends_the_transaction_with_what_did_not_fit() -> None:
    queue: Any = Queue(stuck=True)
    with pytest.raises(UndecidedTransactionError, match=f"{ROOM} were queued within 0.05 s"):
        produce_all(queue, Transaction(outputs=[Output("t", None, b"")] * 95), 0.05)
