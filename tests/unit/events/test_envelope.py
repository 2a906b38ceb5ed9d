"""Events to bytes and headers and back; what is refused, and as which class of error (RO-87, RO-89)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import (
    CREATED,
    DELETED,
    UPDATED,
    Event,
    InvalidEventError,
    PayloadTooLargeError,
    UndecodableEventError,
    decode,
    encode_json,
    encode_protobuf,
    headers_of,
    video_pb2,
)
from schemas.events.envelope import JSON, PROTOBUF
from tests.unit.events.events import event, payloads, types, uuid


def pairs(headers: dict[str, str]) -> list[tuple[str, bytes | None]]:
    return [(name, text.encode()) for name, text in headers.items()]


@dataclass
class Record:
    """A record that is right, until a test spoils it."""

    event: Event
    value: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    key: bytes | None = b""

    def __post_init__(self) -> None:
        self.value = self.value or encode_json(self.event)
        self.headers = self.headers or headers_of(self.event, JSON)
        self.key = self.key or self.event.aggregate_id.encode()

    def decode(self) -> Event:
        return decode(self.value, pairs(self.headers), self.key)


@given(st.data(), types, st.integers(1, (1 << 63) - 1))
def test_an_event_comes_back_as_it_was_from_protobuf_and_from_json(
    data: st.DataObject, kind: str, version: int
) -> None:
    e = event(kind, version, 7, **data.draw(payloads(kind)))  # T36, T47: null, empty and absent stay apart
    key = e.aggregate_id.encode()
    assert decode(encode_json(e), pairs(headers_of(e, JSON)), key) == e
    assert decode(encode_protobuf(e), pairs(headers_of(e)), key) == e
    assert decode(encode_protobuf(e), headers_of(e, trace_id="t"), key) == e


def test_absent_null_and_empty_are_three_things() -> None:  # T47
    found = [
        decode(encode_protobuf(e), headers_of(e), e.aggregate_id.encode()).payload
        for e in (event(UPDATED, 2), event(UPDATED, 2, tags=None, summary=None), event(UPDATED, 2, tags=[], summary=""))
    ]
    assert found == [{}, {"tags": None, "summary": None}, {"tags": [], "summary": ""}]


@given(st.binary(max_size=60), st.sampled_from([PROTOBUF, JSON, None, "text/plain"]))
def test_bytes_that_are_no_event_are_one_of_two_errors_and_never_another(value: bytes, content: str | None) -> None:
    headers = headers_of(event(CREATED, 1))
    if content is None:
        del headers["content-type"]
    else:
        headers["content-type"] = content
    with pytest.raises((UndecodableEventError, InvalidEventError)):
        decode(value, headers, b"k")


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"null", b"\xff\xff", b'{"a":1}', b"[" * 100_000])
def test_poison_is_told_apart(value: bytes | None) -> None:  # T13, T17
    for content in (PROTOBUF, JSON):
        with pytest.raises(UndecodableEventError):
            decode(value, headers_of(event(CREATED, 1), content), uuid(1).encode())


@pytest.mark.parametrize("stated", ["v1", "v1.0", "v1.7"])
def test_a_newer_minor_version_is_read_and_its_unknown_fields_ignored(stated: str) -> None:  # T57
    e = event(UPDATED, 2, title="t")
    body = msgspec.json.decode(encode_json(e))
    body["payload"]["colour"], body["extra"] = "red", 1
    record = Record(e, json.dumps(body).encode(), headers_of(e, JSON) | {"schema_version": stated})
    assert record.decode() == e
    message = video_pb2.Event.FromString(encode_protobuf(e))
    newer = message.SerializeToString() + b"\xba\x3e\x03new"  # field 999
    assert decode(newer, headers_of(e) | {"schema_version": stated}, record.key) == e


@pytest.mark.parametrize("stated", ["v2", "v0", "v10", "1", "v1.", "v1.x", "latest"])
def test_an_unknown_major_version_is_a_business_error_whatever_the_body_is(stated: str) -> None:  # T57
    with pytest.raises(InvalidEventError, match="schema_version") as caught:
        decode(b"\xff of another world", headers_of(event(CREATED, 1)) | {"schema_version": stated}, None)
    assert caught.value.kind == "schema_version"


NAMES = ("event_id", "event_type", "aggregate_id", "aggregate_type", "version", "occurred_at", "schema_version")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["missing", "empty", "twice", "bytes"])
def test_a_required_header_that_is_missing_or_ambiguous_is_named(name: str, how: str) -> None:  # T60
    record = Record(event(CREATED, 1, title="t"))
    headers = [pair for pair in pairs(record.headers) if pair[0] != name]
    added: dict[str, list[tuple[str, bytes | None]]] = {
        "missing": [],
        "empty": [(name, None)],
        "twice": [(name, record.headers[name].encode()), (name, b"other")],
        "bytes": [(name, b"\xff\xfe")],
    }
    with pytest.raises(InvalidEventError, match=name) as caught:
        decode(record.value, headers + added[how], record.key)
    assert caught.value.kind in ("header", "schema_version")


def test_headers_that_repeat_the_same_text_and_headers_of_others_do_no_harm() -> None:  # T60
    record = Record(event(CREATED, 1, title="t"))
    headers = pairs(record.headers)
    assert decode(record.value, [*headers, *headers, ("theirs", b"\xff"), ("theirs", b"2")], record.key) == record.event


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("event_id", uuid(99)),
        ("event_type", DELETED),
        ("aggregate_id", uuid(99)),
        ("aggregate_type", "film"),
        ("version", "2"),
        ("version", "1.0"),
        ("occurred_at", "2026-01-31T12:00:00Z"),
    ],
)
def test_a_header_that_disagrees_with_the_body_is_a_business_error(name: str, text: str) -> None:  # T60
    record = Record(event(CREATED, 1, title="t"))
    record.headers[name] = text
    with pytest.raises(InvalidEventError, match=rf"{name} is .* they must agree") as caught:
        record.decode()
    assert caught.value.kind == "header"


@pytest.mark.parametrize("key", [None, b"", b"\xff", uuid(99).encode()])
def test_a_key_that_is_not_the_aggregate_is_a_business_error(key: bytes | None) -> None:  # T60
    record = Record(event(CREATED, 1))
    record.key = key
    with pytest.raises(InvalidEventError, match=r"the key is .* they must agree"):
        record.decode()


def test_the_same_instant_written_otherwise_agrees() -> None:
    record = Record(event(CREATED, 1))
    record.headers["occurred_at"] = "2026-01-31T20:00:01.000001+08:00"
    assert record.decode() == record.event


def spoilt(**fields: Any) -> Record:
    """A record whose headers follow its body, so that the body's value itself is what is wrong."""
    e = event(UPDATED, 2, title="t")
    body = msgspec.json.decode(encode_json(e)) | fields
    headers = headers_of(e, JSON) | {k: str(v) for k, v in fields.items() if k in NAMES}
    return Record(e, json.dumps(body).encode(), headers, str(body["aggregate_id"]).encode())


@pytest.mark.parametrize(
    ("fields", "kind", "told"),
    [
        ({"version": 0}, "version", "versions count from 1"),
        ({"version": -3}, "version", "versions count from 1"),
        ({"version": 1 << 63}, "version", "versions count from 1"),
        ({"version": 1.5}, "version", "versions count from 1"),
        ({"version": True}, "version", "versions count from 1"),
        ({"event_type": "video.renamed"}, "event_type", "'video.renamed' is unknown here; known are"),
        ({"event_id": "7"}, "identity", "not a UUID"),
        ({"event_id": uuid(10).upper().replace("A", "A")}, "identity", "not a UUID in lower case"),
        ({"aggregate_id": "x"}, "identity", "not a UUID"),
        ({"aggregate_type": "film"}, "identity", "must be 'video'"),
        ({"occurred_at": "yesterday"}, "time", "RFC 3339"),
        ({"occurred_at": "2026-01-31T12:00:00"}, "time", "no offset from UTC"),
        ({"occurred_at": "0001-01-01T00:00:00+14:00"}, "time", "RFC 3339"),
        ({"payload": {"title": 5}}, "field", "'title': expected text"),
        ({"payload": {"title": "a\0b"}}, "field", "NUL character"),
        ({"payload": {"tags": "a"}}, "field", "'tags': expected a list"),
        ({"payload": {"tags": ["a", None]}}, "field", "'tags': expected text"),
        ({"payload": {"status": "gone"}}, "field", "must be one of pending_upload"),
        ({"payload": {"media_status": "published"}}, "field", "must be one of pending, "),
        ({"payload": {"duration_micros": -1}}, "field", "from 0 to"),
        ({"payload": {"duration_micros": 1 << 63}}, "field", "from 0 to"),
        ({"payload": {"published_at": "soon"}}, "time", "published_at"),
        ({"payload": {"video_id": uuid(9)}}, "identity", "video_id"),
        ({"payload": {"version": 9}}, "version", "payload's version"),
        ({"payload": []}, "", ""),
        ({"payload": [1]}, "field", "expected an object"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_applied_is_a_business_error(fields: dict[str, Any], kind: str, told: str) -> None:
    record = spoilt(**fields)
    if not kind:
        assert record.decode().payload == {}
        return
    with pytest.raises(InvalidEventError, match=told) as caught:
        record.decode()
    assert caught.value.kind == kind


def test_protobuf_with_a_wrong_version_type_or_payload_is_a_business_error() -> None:
    e = event(UPDATED, 2, title="t")

    def told(change: Any, **headers: str) -> str:
        message = video_pb2.Event.FromString(encode_protobuf(e))
        change(message)
        with pytest.raises(InvalidEventError) as caught:
            decode(message.SerializeToString(), headers_of(e) | headers, e.aggregate_id.encode())
        return f"{caught.value.kind}: {caught.value}"

    assert told(lambda m: setattr(m, "event_type", 9)).startswith("event_type: event type 9 is unknown")
    assert told(lambda m: setattr(m, "event_type", 0)).startswith("event_type: event type 0 is unknown")
    assert "with a payload of deleted" in told(lambda m: m.deleted.SetInParent())
    assert "with a payload of nothing" in told(lambda m: m.ClearField("payload"))
    assert "payload's version" in told(lambda m: setattr(m.updated, "version", 8))
    assert "video_id" in told(lambda m: setattr(m.updated, "video_id", uuid(8)))
    assert "null_fields" in told(lambda m: m.updated.null_fields.append("title"))
    for version in (0, -1):

        def set_version(m: Any, version: int = version) -> None:
            m.version = version
            m.updated.version = version

        assert told(set_version, version=str(version)).startswith("version: version is")


@pytest.mark.parametrize("encode", [encode_protobuf, encode_json])
def test_an_event_over_the_limit_of_its_topic_is_refused_at_the_writer(encode: Any) -> None:  # T60, RO-97
    e = event(UPDATED, 2, summary="x" * 1_000_000)
    with pytest.raises(
        PayloadTooLargeError, match=rf"{e.event_id} .*1,000,\d+ bytes, 1,000,000 are allowed.*claim check"
    ):
        encode(e)
    assert len(encode(e, max_bytes=1_100_000)) > 1_000_000


def test_a_writer_is_told_what_is_wrong_before_anything_is_stored() -> None:
    for wrong in (event(UPDATED, 0), event(UPDATED, 1, status="gone"), event(UPDATED, 1, colour="red"), event("x", 1)):
        for write in (encode_protobuf, encode_json, headers_of):
            with pytest.raises(InvalidEventError):
                write(wrong)
    with pytest.raises(InvalidEventError, match="no header 'tracing'"):
        headers_of(event(CREATED, 1), tracing="1")
    naive = msgspec.structs.replace(event(CREATED, 1), occurred_at=datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="no time zone"):  # T24
        headers_of(naive)
