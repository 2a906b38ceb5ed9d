"""Settings of relay and projection: there are defaults, variables go before them, and a wrong one is named (RO-43)."""

from __future__ import annotations

import pytest

from millstream.errors import ConfigError
from millstream.settings import Settings


def test_a_relay_needs_no_setting_but_the_urls_and_takes_any(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Settings()
    assert found.outbox_topics == {"video": "catalog.video.events"}
    assert (found.outbox_via, found.outbox_lease, found.outbox_max_attempts) == ("polling", 120.0, 20)
    for name, value in {
        "TOPICS": "video=a.b.c, author=d.e.f", "VIA": "replication", "LEASE": "8", "PUBLISH_TIMEOUT": "4",
        "BACKOFF": "0.5", "MAX_ATTEMPTS": "3", "BATCH_SIZE": "100",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"MILLSTREAM_OUTBOX_{name}", value)
    found = Settings()
    assert found.outbox_topics == {"video": "a.b.c", "author": "d.e.f"}
    assert (found.outbox_via, found.outbox_lease, found.outbox_backoff) == ("replication", 8.0, 0.5)
    assert (found.outbox_max_attempts, found.outbox_batch_size) == (3, 100)
    monkeypatch.setenv("MILLSTREAM_PROJECTION_INBOX_RETENTION", "none")
    assert Settings().projection_inbox_retention is None


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OUTBOX_TOPICS", "video", "video"),
        ("OUTBOX_TOPICS", "video=no good", "no good"),
        ("OUTBOX_VIA", "magic", "polling"),
        ("OUTBOX_PUBLISH_TIMEOUT", "100", "MILLSTREAM_OUTBOX_LEASE"),
        ("OUTBOX_POLL_MIN", "99", "MILLSTREAM_OUTBOX_POLL_MAX"),
        ("OUTBOX_SLOT", "No-Slot", "No-Slot"),
        ("OUTBOX_BATCH_SIZE", "0", "greater than or equal to 1"),
        ("PROJECTION_INBOX_RETENTION", "-1", "greater than 0"),
    ],
)
def test_a_wrong_one_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str) -> None:
    monkeypatch.setenv(f"MILLSTREAM_{name}", value)
    with pytest.raises(ConfigError) as raised:
        Settings()
    assert f"MILLSTREAM_{name}" in str(raised.value)
    assert told in str(raised.value)
