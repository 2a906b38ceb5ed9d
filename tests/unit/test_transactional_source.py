"""Where the records of a transactional source go, with librdkafka's client in a stand-in's place."""

from __future__ import annotations

from typing import Any

import pytest

from millstream.settings import Settings
from sources import transactional


class Client:
    def __init__(self, *_: object, **__: object) -> None:
        self.producer, self.sent = self, []

    def refresh(self) -> bool:
        return False

    def begin_transaction(self) -> None: ...

    def poll(self, _timeout: float) -> None: ...

    def produce(self, topic: str, value: bytes, key: bytes, **_: Any) -> None:
        self.sent.append((topic, key, value))


def test_a_record_for_another_topic_does_not_land_in_the_sources_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outbox relay via replication sends each aggregate type to its topic; its position stands in the first one."""
    monkeypatch.setattr(transactional, "TransactionalClient", Client)
    source = transactional.TransactionalSource(Settings(bootstrap_servers="127.0.0.1:1"), "relay", "videos", 1000)
    source.send(b"1", b"a", [])
    source.send(b"2", b"b", [], topic="orders")
    client: Any = source._client
    assert client.sent == [("videos", b"1", b"a"), ("orders", b"2", b"b")]
