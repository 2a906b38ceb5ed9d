"""What a relay tells of its progress."""

from __future__ import annotations

from structlog.testing import capture_logs

from sources.outbox.publisher import tell_published
from sources.outbox.relay import Look, tell_progress


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
