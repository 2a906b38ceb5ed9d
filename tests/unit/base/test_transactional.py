"""What librdkafka's producer does not do by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import confluent_kafka as ck
import pytest

from millstream import transactional
from millstream.transactional import TransactionalClient, _Connections


class Producer:
    """Its call for offsets does not come back before `answer` is set."""

    def __init__(self) -> None:
        self.answer, self.error = threading.Event(), None

    def send_offsets_to_transaction(self, *_: Any) -> None:
        self.answer.wait(30)
        if self.error is not None:
            raise self.error


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TransactionalClient, Any]]:
    monkeypatch.setattr(transactional, "_GRACE", 0.05)
    producer: Any = Producer()
    made = TransactionalClient.__new__(TransactionalClient)
    made._timeout, made.producer = 0.05, producer
    yield made, producer
    producer.answer.set()


def test_a_call_for_offsets_that_never_comes_back_leaves_the_transaction_undecided(client: Any) -> None:
    with pytest.raises(ck.KafkaException, match="did not end within") as raised:
        client[0].send_offsets([], b"")
    error = raised.value.args[0]
    assert error.code() == ck.KafkaError._TIMED_OUT
    assert not error.txn_requires_abort()  # the engine ends the process


def test_what_the_call_for_offsets_raises_comes_out(client: Any) -> None:
    made, producer = client
    producer.answer.set()
    made.send_offsets([], b"")
    producer.error = ck.KafkaException(ck.KafkaError(ck.KafkaError.ILLEGAL_GENERATION))
    with pytest.raises(ck.KafkaException) as raised:
        made.send_offsets([], b"")
    assert raised.value.args[0].code() == ck.KafkaError.ILLEGAL_GENERATION


@pytest.mark.parametrize(
    ("facility", "text", "lost"),
    [
        ("FAIL", "b/1: Disconnected: connection closed by peer (after 5ms in state UP)", True),
        ("FAIL", "b/1: Disconnected: connection reset by peer (after 2ms in state APIVERSION_QUERY)", True),
        ("FAIL", "a text too long for librdkafka to say the state", True),
        ("REQTMOUT", "b/1: Timed out 1 in-flight, 0 retry-queued, 0 out-queue, 0 partially-sent requests", True),
        ("FAIL", "b/1: Connect to ipv4#b:1 failed: Connection refused (after 0ms in state CONNECT)", False),
        ("GETPID", "Failed to acquire transactional PID: Broker: Not coordinator: retrying", False),
    ],
)
def test_a_request_may_be_on_its_way_after_a_broken_connection_not_after_one_that_never_was(
    facility: str, text: str, lost: bool
) -> None:  # hole j
    connections = _Connections()
    connections.log(20, "%s [%s] %s", facility, "rdkafka#producer-1", text)
    assert bool(connections.broke) == lost
