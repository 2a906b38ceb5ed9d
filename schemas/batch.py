"""A batch (one dump of one cluster), and a run (one feeding of one instance of it)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

SLUG = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.\d{3}Z", re.ASCII)
"""What `Batch.slug` makes."""


@dataclass(frozen=True, slots=True, order=True)
class Batch:
    """One dump of one cluster: exactly `cluster` and `batch_ts` (RU-70)."""

    cluster: str
    batch_ts: int
    """Nanoseconds since 1970-01-01 UTC, an integer from end to end (T36)."""

    @property
    def rfc3339(self) -> str:
        """The batch's time in RFC 3339, always with nine digits."""
        seconds, ns = divmod(self.batch_ts, 1_000_000_000)
        return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}.{ns:09d}Z"

    @property
    def slug(self) -> str:
        """`YYYY-MM-DD_HH-mm-ss.SSSZ` (RP-11): milliseconds, so two batches may share it (T30)."""
        seconds, ns = divmod(self.batch_ts, 1_000_000_000)
        return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%d_%H-%M-%S}.{ns // 1_000_000:03d}Z"

    @property
    def key(self) -> str:
        """Key of the batch in topics and tables: the time first, as it is of fixed form, then the cluster as it is."""
        return f"{self.rfc3339}/{self.cluster}"

    @classmethod
    def from_key(cls, key: str) -> Batch:
        """The batch of a `key`."""
        time, _, cluster = key.partition("/")
        return cls(cluster, parse_rfc3339(time))


@dataclass(frozen=True, slots=True)
class Run:
    """One feeding of one instance of a batch. A later run of the same instance voids the earlier one (hole e)."""

    batch: Batch
    instance: str
    run_id: str
    """Unique per feeding, `[0-9a-f]{32}`."""


def parse_rfc3339(text: str) -> int:
    """Nanoseconds since 1970 of an RFC 3339 time. Raises ValueError that says what is allowed."""
    m = _RFC3339.fullmatch(text.strip())
    if not m:
        raise ValueError(f"{text!r} is not an RFC 3339 time such as 2026-11-23T08:30:00Z or …:00.123456789+08:00")
    *date, fraction, zone = m.groups()
    at = datetime(*map(int, date), tzinfo=UTC) - _EPOCH  # type: ignore[misc,arg-type]
    offset = 0 if zone in "Zz" else (1 if zone[0] == "+" else -1) * (int(zone[1:3]) * 3600 + int(zone[4:6]) * 60)
    ns = int((fraction or "").ljust(9, "0"))
    return (at.days * 86_400 + at.seconds - offset) * 1_000_000_000 + ns
