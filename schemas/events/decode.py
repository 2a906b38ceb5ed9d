"""Bytes and headers as an event, at the reader: what cannot be read, what must not be applied, and what is fine."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from google.protobuf.message import DecodeError

from schemas.events import video_pb2 as pb
from schemas.events.encode import PB_TYPES, REQUIRED_HEADERS
from schemas.events.envelope import (
    CREATED,
    DELETED,
    FIELDS,
    JSON,
    PROTOBUF,
    SCHEMA_VERSION,
    UPDATED,
    Event,
    InvalidEventError,
    UndecodableEventError,
    Value,
    check,
    check_version,
    parse_time,
)

Headers = Collection[tuple[str, bytes | None]]

_SUPPORTED = re.compile(r"v1(\.\d+)?")
_NAMES = {number: name for name, number in PB_TYPES.items()}
_PAYLOADS = {CREATED: "created", UPDATED: "updated", DELETED: "deleted"}
_INTEGER = re.compile(r"-?\d{1,20}", re.ASCII)
_json = msgspec.json.Decoder()


def decode(value: bytes | None, headers: Headers | Mapping[str, str], key: bytes | None) -> Event:
    """The event of a record. Raises UndecodableEventError (poison) or InvalidEventError (a business error).

    A schema version of another major is not looked into; within v1, fields that are unknown here are ignored (T57).
    Body, headers and key have to agree (T60).
    """
    if value is None:
        raise UndecodableEventError("null value (tombstone) on a topic of events")
    found = dict(headers) if isinstance(headers, Mapping) else read_headers(headers)
    stated = found.get("schema_version")
    if stated is not None and _SUPPORTED.fullmatch(stated) is None:
        raise InvalidEventError(
            "schema_version", f"schema_version is {stated!r}; this reader knows {SCHEMA_VERSION} and its minors"
        )
    content = found.get("content-type", PROTOBUF)
    if content == PROTOBUF:
        event = _from_protobuf(value)
    elif content == JSON:
        event = _from_json(value)
    else:
        raise UndecodableEventError(f"content-type is {content!r}, must be {PROTOBUF} or {JSON}")
    _agree(event, found, key)
    check(event)
    return event


def read_headers(headers: Headers) -> dict[str, str]:
    """Headers by name. A required one that is repeated with another text, or is no UTF-8, raises InvalidEventError."""
    try:
        found = {name: (raw or b"").decode() for name, raw in headers}
    except UnicodeDecodeError:
        found = {}
    if len(found) == len(headers):
        return found
    found = {}
    for name, raw in headers:
        try:
            text = (raw or b"").decode()
        except UnicodeDecodeError:
            if name in _LOOKED_AT:
                raise InvalidEventError("header", f"header {name!r} is not UTF-8: {raw!r}") from None
            continue
        if found.setdefault(name, text) != text and name in _LOOKED_AT:
            raise InvalidEventError("header", f"header {name!r} is there twice: {found[name]!r} and {text!r}")
    return found


_LOOKED_AT = {*REQUIRED_HEADERS, "content-type"}


def _agree(event: Event, headers: dict[str, str], key: bytes | None) -> None:
    for name in REQUIRED_HEADERS:
        if not headers.get(name):
            raise InvalidEventError("header", f"required header {name!r} is missing or empty")
    for name in ("event_id", "event_type", "aggregate_id", "aggregate_type"):
        if headers[name] != getattr(event, name):
            raise _differs(name, headers[name], getattr(event, name))
    version = headers["version"]
    if version != str(event.version):
        if _INTEGER.fullmatch(version):
            check_version(int(version))
        raise _differs("version", version, event.version)
    if parse_time("header occurred_at", headers["occurred_at"]) != event.occurred_at:
        raise _differs("occurred_at", headers["occurred_at"], event.occurred_at)
    if key != event.aggregate_id.encode():
        raise InvalidEventError(
            "header", f"the key is {key!r}, the aggregate_id {event.aggregate_id!r}: they must agree"
        )


def _differs(name: str, header: object, body: object) -> InvalidEventError:
    return InvalidEventError("header", f"{name} is {header!r} in the headers and {body!r} in the body: they must agree")


def _from_protobuf(value: bytes) -> Event:
    try:
        message = pb.Event.FromString(value)
    except DecodeError as e:
        raise UndecodableEventError(f"no protobuf of {pb.Event.DESCRIPTOR.full_name}: {e}") from None
    if not message.event_type and not message.ListFields():
        raise UndecodableEventError(f"no field of {message.DESCRIPTOR.full_name} in it")
    kind = _NAMES.get(message.event_type)
    if kind is None:
        raise InvalidEventError("event_type", f"event type {message.event_type} is unknown here")
    case = message.WhichOneof("payload")
    if case != _PAYLOADS[kind]:
        raise InvalidEventError("event_type", f"event type {kind} with a payload of {case or 'nothing'}")
    part = getattr(message, case)
    _same(message.aggregate_id, message.version, part.video_id or None, part.version or None)
    return Event(
        event_id=message.event_id,
        event_type=kind,
        aggregate_id=message.aggregate_id,
        aggregate_type=message.aggregate_type,
        version=message.version,
        occurred_at=parse_time("occurred_at", message.occurred_at),
        payload=_payload(kind, part),
    )


def _payload(kind: str, part: Any) -> dict[str, Value]:
    known, payload = FIELDS[kind], dict[str, Value]()
    for descriptor, value in part.ListFields():
        name = descriptor.name
        if name in known:
            payload[name] = list(value.values) if name == "tags" else value
    if kind == UPDATED:
        for name in part.null_fields:
            if payload.get(name) is not None:
                raise InvalidEventError("field", f"field {name!r} has a value and is named in null_fields")
            if name in known:
                payload[name] = None
    return payload


def _from_json(value: bytes) -> Event:
    try:
        message = _json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UndecodableEventError(f"no JSON: {e}") from None
    if not isinstance(message, dict) or "event_type" not in message:
        raise UndecodableEventError("no JSON object with an event_type")
    kind, payload = message["event_type"], message.get("payload") or {}
    for name in ("event_id", "event_type", "aggregate_id", "aggregate_type", "occurred_at"):
        if not isinstance(message.get(name), str):
            raise InvalidEventError("field", f"field {name!r}: expected text, found {message.get(name)!r}")
    check_version(message.get("version"))
    if not isinstance(payload, dict):
        raise InvalidEventError("field", f"payload: expected an object, found {type(payload).__name__}")
    _same(message["aggregate_id"], message["version"], payload.get("video_id"), payload.get("version"))
    known = FIELDS.get(kind, {})
    return Event(
        event_id=message["event_id"],
        event_type=kind,
        aggregate_id=message["aggregate_id"],
        aggregate_type=message["aggregate_type"],
        version=message["version"],
        occurred_at=parse_time("occurred_at", message["occurred_at"]),
        payload={name: v for name, v in payload.items() if name in known},
    )


def _same(aggregate_id: str, version: int, video_id: object, payload_version: object) -> None:
    if video_id is not None and video_id != aggregate_id:
        raise InvalidEventError(
            "identity", f"the payload's video_id is {video_id!r}, the envelope's aggregate_id {aggregate_id!r}"
        )
    if payload_version is not None and payload_version != version:
        raise InvalidEventError("version", f"the payload's version is {payload_version!r}, the envelope's {version!r}")
