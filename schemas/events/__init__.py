"""Events of the catalogue: the envelope, its headers, and how a chunk of them becomes rows (`schemas.events.codec`)."""

from schemas.events.decode import decode
from schemas.events.encode import encode_json, encode_protobuf, headers_of
from schemas.events.envelope import (
    AGGREGATE_TYPE,
    CREATED,
    DELETED,
    EVENT_TYPES,
    MAX_VALUE_BYTES,
    SCHEMA_VERSION,
    TOPIC,
    UPDATED,
    Event,
    InvalidEventError,
    PayloadTooLargeError,
    UndecodableEventError,
)

__all__ = [
    "AGGREGATE_TYPE",
    "CREATED",
    "DELETED",
    "EVENT_TYPES",
    "MAX_VALUE_BYTES",
    "SCHEMA_VERSION",
    "TOPIC",
    "UPDATED",
    "Event",
    "InvalidEventError",
    "PayloadTooLargeError",
    "UndecodableEventError",
    "decode",
    "encode_json",
    "encode_protobuf",
    "headers_of",
]
