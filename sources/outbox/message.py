"""A row of the outbox as a record of a topic."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from millstream.errors import MillstreamError

if TYPE_CHECKING:
    from asyncpg import Record

_headers = msgspec.json.Decoder(dict[str, str])
FRAME_BYTES = 128
"""61 bytes of a record batch, and what a record's lengths and times take."""
SCHEMA_VERSION = "v1"
"""Of rows whose writer did not say."""


class UnfitEventError(MillstreamError):
    """A row that cannot become a record. The text says why."""


class Message(NamedTuple):
    """What goes to Kafka."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]

    @property
    def size(self) -> int:
        """Bytes in the log at most, compression aside; the frame of a batch of one record included."""
        pairs = sum(len(name) + len(value) + 8 for name, value in self.headers)
        return len(self.key) + len(self.value) + pairs + FRAME_BYTES


def message_of(row: Mapping[str, Any] | Record, topics: Mapping[str, str]) -> Message:
    """The record of a row: key, headers and payload as the writer gave them. Raises UnfitEventError.

    Headers are text (T60). Those that every event has (RO-87) are filled in from the columns if they are missing.
    """
    try:
        headers = _headers.decode(row["headers"])
    except msgspec.MsgspecError as e:
        raise UnfitEventError(f"headers must be an object of texts: {e}") from e
    if not headers.keys() >= _REQUIRED:
        headers = _columns(row) | headers
    return Message(
        topics[row["aggregate_type"]],
        row["key"].encode(),
        row["payload"],
        [(name, value.encode()) for name, value in headers.items()],
    )


def _columns(row: Mapping[str, Any] | Record) -> dict[str, str]:
    return {
        "event_id": str(row["event_id"]),
        "event_type": row["event_type"],
        "aggregate_id": row["key"],
        "aggregate_type": row["aggregate_type"],
        "version": str(row["version"]),
        "occurred_at": rfc3339(row["occurred_at"]),
        "schema_version": SCHEMA_VERSION,
    }


def rfc3339(time: datetime) -> str:
    """Text in UTC, as `2026-01-31T12:00:00.000001Z`."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


_REQUIRED = {"event_id", "event_type", "aggregate_id", "aggregate_type", "version", "occurred_at", "schema_version"}
