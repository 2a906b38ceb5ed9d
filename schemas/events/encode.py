"""Events as bytes and headers, at the writer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from schemas.events import video_pb2 as pb
from schemas.events.envelope import (
    CREATED,
    DELETED,
    MAX_VALUE_BYTES,
    PROTOBUF,
    SCHEMA_VERSION,
    UPDATED,
    Event,
    InvalidEventError,
    PayloadTooLargeError,
    check,
    format_time,
)

REQUIRED_HEADERS = (
    "event_id",
    "event_type",
    "aggregate_id",
    "aggregate_type",
    "version",
    "occurred_at",
    "schema_version",
)
OPTIONAL_HEADERS = (
    "correlation_id",
    "causation_id",
    "user_id",
    "source_service",
    "source_version",
    "trace_id",
    "span_id",
)
PB_TYPES = {
    CREATED: pb.EVENT_TYPE_VIDEO_CREATED,
    UPDATED: pb.EVENT_TYPE_VIDEO_UPDATED,
    DELETED: pb.EVENT_TYPE_VIDEO_DELETED,
}
_MESSAGES: dict[str, Callable[..., Any]] = {
    CREATED: pb.VideoCreated,
    UPDATED: pb.VideoUpdated,
    DELETED: pb.VideoDeleted,
}


def headers_of(event: Event, content_type: str = PROTOBUF, **optional: str) -> dict[str, str]:
    """The headers of an event (RO-87); `optional` are those of OPTIONAL_HEADERS. Raises InvalidEventError."""
    check(event)
    if unknown := optional.keys() - set(OPTIONAL_HEADERS):
        raise InvalidEventError("header", f"no header {min(unknown)!r}; optional are {', '.join(OPTIONAL_HEADERS)}")
    return {
        "event_id": event.event_id,
        "event_type": event.event_type,
        "aggregate_id": event.aggregate_id,
        "aggregate_type": event.aggregate_type,
        "version": str(event.version),
        "occurred_at": format_time(event.occurred_at),
        "schema_version": SCHEMA_VERSION,
        "content-type": content_type,
        **optional,
    }


def encode_protobuf(event: Event, max_bytes: int = MAX_VALUE_BYTES) -> bytes:
    """The envelope as protobuf. Raises InvalidEventError, PayloadTooLargeError."""
    check(event)
    message = _MESSAGES[event.event_type](
        video_id=event.aggregate_id, version=event.version, occurred_at=format_time(event.occurred_at)
    )
    for name, value in event.payload.items():
        if value is None:
            if event.event_type == UPDATED:
                message.null_fields.append(name)
        elif isinstance(value, list):
            message.tags.CopyFrom(pb.Tags(values=value))
        else:
            setattr(message, name, value)
    envelope = pb.Event(
        event_id=event.event_id,
        event_type=PB_TYPES[event.event_type],
        aggregate_id=event.aggregate_id,
        aggregate_type=event.aggregate_type,
        version=event.version,
        occurred_at=format_time(event.occurred_at),
    )
    getattr(envelope, event.event_type.removeprefix("video.")).CopyFrom(message)
    return _sized(event, envelope.SerializeToString(deterministic=True), max_bytes)


def encode_json(event: Event, max_bytes: int = MAX_VALUE_BYTES) -> bytes:
    """The envelope as JSON; numbers are exact integers. Raises InvalidEventError, PayloadTooLargeError."""
    check(event)
    fields = {
        "event_id": event.event_id,
        "event_type": event.event_type,
        "aggregate_id": event.aggregate_id,
        "aggregate_type": event.aggregate_type,
        "version": event.version,
        "occurred_at": format_time(event.occurred_at),
        "payload": event.payload,
    }
    return _sized(event, msgspec.json.encode(fields), max_bytes)


def _sized(event: Event, value: bytes, limit: int) -> bytes:
    if len(value) > limit:
        raise PayloadTooLargeError(
            f"{event.event_type} {event.event_id} of {event.aggregate_type} {event.aggregate_id} takes {len(value):,} "
            f"bytes, {limit:,} are allowed: put the large field elsewhere and its address into the event (claim "
            "check), or raise max.message.bytes of the topic and this limit"
        )
    return value
