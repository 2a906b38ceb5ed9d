"""What a relay tells of its progress."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from millstream.errors import BrokerError
from sources.outbox.message import Message
from sources.outbox.publisher import tell_published
from sources.outbox.relay import Look, tell_progress
from sources.outbox.replication import Position, _Pump
from sources.outbox.walstream import Server


def test_what_was_published_is_told_with_the_backlog_before_and_after() -> None:  # RO-42
    stats = {"pending": 4, "oldest_seconds": 1.23, "retrying": 1}
    with capture_logs() as lines:
        first = tell_progress(None, 0, stats | {"pending": 10})
        second = tell_progress(first, 6, stats)
        assert tell_progress(second, 6, stats) == Look(6, 4)  # nothing was published: nothing is told
    (line,) = lines
    assert (line["event"], line["published"], line["backlog_before"], line["backlog_after"]) == (
        "outbox_progress", 6, 10, 4,
    )  # fmt: skip


def test_a_published_event_is_told_with_its_place_in_kafka() -> None:  # RO-66
    with capture_logs() as lines:
        tell_published([("event_id", b"e"), ("aggregate_id", b"a"), ("version", b"3")], "videos-1@42")
    (line,) = lines
    told = [line[name] for name in ("log_level", "event_id", "aggregate_id", "version", "message_id")]
    assert told == ["debug", "e", "a", "3", "videos-1@42"]


class Source:
    """Takes records; Kafka refuses their transaction, or commits it."""

    def __init__(self, refuses: bool) -> None:
        self.refuses = refuses

    def send(self, *_: Any, **__: Any) -> None: ...

    def flush(self) -> None: ...

    def commit(self, *_: Any) -> None:
        if self.refuses:
            raise BrokerError("the transaction was aborted")


@pytest.mark.parametrize("refuses", [False, True])
def test_via_replication_an_event_is_told_as_acknowledged_once_its_transaction_is_committed(
    refuses: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "sources.outbox.replication")
    pump: Any = _Pump.__new__(_Pump)
    pump._source, pump._relay = Source(refuses), SimpleNamespace(_sent=0)
    message = Message("videos", b"a", b"", [("event_id", b"e"), ("aggregate_id", b"a"), ("version", b"3")])
    with capture_logs() as lines:
        try:
            pump._send([message], Position(Server("system", 1), (1 << 32) + 0xAB))
        except BrokerError:
            assert refuses
    told = [line["message_id"] for line in lines if line["event"] == "outbox_event_published"]
    assert told == ([] if refuses else ["videos 1/AB"])
