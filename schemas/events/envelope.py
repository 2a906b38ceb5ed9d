"""The envelope of an event: its fields, which values they may have, and the errors that say otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import msgspec

from millstream.errors import MillstreamError

TOPIC = "catalog.video.events"
AGGREGATE_TYPE = "video"
SCHEMA_VERSION = "v1"
CREATED, UPDATED, DELETED = EVENT_TYPES = ("video.created", "video.updated", "video.deleted")
PROTOBUF, JSON = CONTENT_TYPES = ("application/x-protobuf", "application/json")

MAX_VALUE_BYTES = 1_000_000
"""Of an encoded event. A topic's default limit (`max.message.bytes`) is 1,048,588, headers included."""
MAX_VERSION = (1 << 63) - 1

EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Value = str | int | list[str] | None
"""Of a field. Times are RFC 3339 text."""


class UndecodableEventError(MillstreamError):
    """Poison: the bytes are no event. They belong into the dead-letter topic."""


class InvalidEventError(MillstreamError):
    """A business error: an event that can be read, and must not be applied. It is recorded and acknowledged (RO-89).

    `kind` is one of a few names: schema_version, header, event_type, identity, version, time, field.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class PayloadTooLargeError(MillstreamError):
    """The encoded event does not fit into a message of its topic. Raised at the writer, before anything is stored."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to one aggregate. `payload` has what changed: absent is not null (T47)."""

    event_id: str
    """UUID in its canonical form: lower case, with dashes."""
    event_type: str
    aggregate_id: str
    """UUID in its canonical form; also the record's key."""
    version: int
    """The aggregate's own counter, raised under its row lock (T48)."""
    occurred_at: datetime
    """Aware. For information: order is by version."""
    payload: Mapping[str, Value] = {}
    aggregate_type: str = AGGREGATE_TYPE


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidEventError("field", f"field {name!r}: expected text, found {type(value).__name__}")
    if "\0" in value:
        raise InvalidEventError("field", f"field {name!r} holds a NUL character, which Postgres cannot store")


def _one_of(*allowed: str) -> Callable[[str, object], None]:
    def check(name: str, value: object) -> None:
        if value not in allowed:
            raise InvalidEventError("field", f"field {name!r} is {value!r}, must be one of {', '.join(allowed)}")

    return check


def _count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_VERSION:
        raise InvalidEventError("field", f"field {name!r} is {value!r}: expected an integer from 0 to 2^63 - 1")


def _texts(name: str, value: object) -> None:
    if not isinstance(value, list):
        raise InvalidEventError("field", f"field {name!r}: expected a list of texts, found {type(value).__name__}")
    for item in value:
        _text(name, item)


def _time(name: str, value: object) -> None:
    _text(name, value)
    parse_time(name, value)  # type: ignore[arg-type]


def _uuid(name: str, value: object) -> None:
    _text(name, value)
    if not is_uuid(value):  # type: ignore[arg-type]
        raise InvalidEventError("field", f"field {name!r} is {value!r}, not a UUID in lower case with dashes")


VIDEO_STATUS = ("pending_upload", "processing", "ready", "published", "failed", "rejected", "archived")
STAGE_STATUS = ("pending", "processing", "ready", "failed")

_ALWAYS: dict[str, Callable[[str, object], None]] = {
    "title": _text,
    "description": _text,
    "duration_micros": _count,
    "status": _one_of(*VIDEO_STATUS),
    "media_status": _one_of(*STAGE_STATUS),
    "analysis_status": _one_of(*STAGE_STATUS),
}
FIELDS: dict[str, dict[str, Callable[[str, object], None]]] = {
    CREATED: {"uploader_id": _uuid} | _ALWAYS,
    UPDATED: _ALWAYS
    | {
        "thumbnail_url": _text,
        "hls_master_playlist": _text,
        "difficulty": _text,
        "summary": _text,
        "tags": _texts,
        "raw_subtitle_url": _text,
        "published_at": _time,
    },
    DELETED: {"deleted_at": _time, "reason": _text},
}
"""Event type -> field -> what checks a value that is not null."""

TIME_FIELDS = frozenset({"published_at"})
"""Fields of the projection that are times."""


def check(event: Event) -> None:
    """Raise InvalidEventError unless every part of the event has a value that can be applied."""
    if event.aggregate_type != AGGREGATE_TYPE:
        raise InvalidEventError("identity", f"aggregate_type is {event.aggregate_type!r}, must be {AGGREGATE_TYPE!r}")
    fields = FIELDS.get(event.event_type)
    if fields is None:
        raise InvalidEventError(
            "event_type", f"event type {event.event_type!r} is unknown here; known are {', '.join(EVENT_TYPES)}"
        )
    for name, text in (("event_id", event.event_id), ("aggregate_id", event.aggregate_id)):
        if not is_uuid(text):
            raise InvalidEventError("identity", f"{name} is {text!r}, not a UUID in lower case with dashes")
    check_version(event.version)
    for name, value in event.payload.items():
        if value is not None:
            if name not in fields:
                raise InvalidEventError("field", f"an event {event.event_type} has no field {name!r}")
            fields[name](name, value)


def check_version(version: object) -> None:
    """Raise InvalidEventError unless this is a version: 1 and up."""
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= MAX_VERSION:
        raise InvalidEventError("version", f"version is {version!r}; versions count from 1 to 2^63 - 1")


def is_uuid(text: str) -> bool:
    """Whether this is the canonical text of a UUID, the only one that makes equal ids equal texts."""
    return _UUID.fullmatch(text) is not None


def parse_time(name: str, text: str) -> datetime:
    """RFC 3339 text as a time in UTC. Raises InvalidEventError."""
    try:
        return _utc(text)
    except (ValueError, OverflowError) as e:
        raise InvalidEventError(
            "time", f"{name} is {text!r}, must be RFC 3339 as 2026-01-31T12:00:00.000001Z: {e}"
        ) from None


@lru_cache(1)  # an event tells its time twice, in its headers and in its body
def _utc(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("it has no offset from UTC")
    return time.astimezone(UTC)


def format_time(time: datetime) -> str:
    """RFC 3339 text in UTC. Raises ValueError for a time without offset (T24)."""
    if time.tzinfo is None:
        raise ValueError(f"{time!r} has no time zone; use datetime.now(UTC)")
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")
