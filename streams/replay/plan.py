"""What a replay reads: parsed, and as a text that says the same for the same question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from millstream.errors import ConfigError

BEGINNING = "beginning"


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """The topic of events: from a time on, from given offsets on, or all of it."""

    since: datetime | None = None
    offsets: Mapping[int, int] | None = None
    """Partition -> first offset; other partitions are not read."""

    def __str__(self) -> str:
        if self.offsets is not None:
            return "topic at " + ",".join(f"{p}:{o}" for p, o in sorted(self.offsets.items()))
        return f"topic from {BEGINNING if self.since is None else _text(self.since)}"


@dataclass(frozen=True, slots=True)
class OutboxPlan:
    """The outbox table, published or not."""

    since: datetime | None = None

    def __str__(self) -> str:
        return f"outbox from {BEGINNING if self.since is None else _text(self.since)}"


Plan = TopicPlan | OutboxPlan


def make_plan(start: str | None, offset: str | None, outbox: bool, since: str | None) -> Plan:
    """The plan of these options; exactly one of the first three is given. Raises ConfigError."""
    if sum((start is not None, offset is not None, outbox)) != 1:
        raise ConfigError(
            "what to read: give one of --from TIME (or --from beginning), --offset PARTITION:OFFSET, --outbox"
        )
    if since is not None and not outbox:
        raise ConfigError("--since goes with --outbox; of the topic, --from TIME says where to begin")
    if outbox:
        return OutboxPlan(None if since is None else parse_time("--since", since))
    if offset is not None:
        return TopicPlan(offsets=parse_offsets(offset))
    assert start is not None
    return TopicPlan(None if start == BEGINNING else parse_time("--from", start))


def parse_time(option: str, text: str) -> datetime:
    """RFC 3339 with an offset. Raises ConfigError."""
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is None:
            raise ValueError("no offset")
        return found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{option} is {text!r}: write a time with its offset, such as 2026-11-23T08:30:00Z"
            + (f", or {BEGINNING!r}" if option == "--from" else "")
        ) from None


def parse_offsets(text: str) -> dict[int, int]:
    """`0:17,3:200` as partition -> offset. Raises ConfigError."""
    found: dict[int, int] = {}
    for part in text.split(","):
        partition, colon, offset = part.strip().partition(":")
        numbers = [n for n in (partition, offset) if n.isascii() and n.isdecimal() and len(n) < 19]
        if not colon or len(numbers) != 2:
            raise ConfigError(f"--offset: {part!r} is no PARTITION:OFFSET, such as 0:17 or 0:17,3:200")
        if int(partition) in found:
            raise ConfigError(f"--offset: partition {partition} is given twice")
        found[int(partition)] = int(offset)
    return found


def _text(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
