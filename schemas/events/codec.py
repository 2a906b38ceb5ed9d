"""A chunk of events as one Arrow table: what can be applied, and what is to be recorded as an error, beside each other.

Poison goes to the dead-letter topic, as everywhere; an event that is refused (a business error) stays a row, with
`error_kind`, `error` and its original bytes, because it is recorded and acknowledged (RO-89).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
import pyarrow as pa

from schemas.codecs import OFFSET, Decoded, Rejected, table_of
from schemas.events.decode import Headers, decode
from schemas.events.envelope import (
    CREATED,
    DELETED,
    EPOCH,
    MICROSECOND,
    TIME_FIELDS,
    Event,
    InvalidEventError,
    UndecodableEventError,
    is_uuid,
    parse_time,
)

SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("event_type", pa.string()),
        ("aggregate_id", pa.string()),
        ("version", pa.int64()),
        ("occurred_at", pa.timestamp("us", "UTC")),
        ("changes", pa.string()),
        ("digest", pa.binary()),
        ("error_kind", pa.string()),
        ("error", pa.string()),
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("headers", pa.string()),
    ]
)
"""`changes` is a JSON object: field -> value, what the event sets, times as microseconds since 1970-01-01 UTC;
`occurred_at` is among them, and `created_at` of a created event. `digest` is equal for equal content, whatever the
event's id and encoding. Rows with an error have what could be read, key, value, and headers as `headers_text` gives."""

EVENTS = ("event_id", "event_type", "aggregate_id", "version", "occurred_at", "changes")
"""Columns of a row without error that say what happened."""

_to_json = msgspec.json.Encoder(order="sorted").encode


class EventCodec:
    """The engine's codec of topics of events."""

    rows_of: Callable[[Any], int] | None = None
    is_control: Callable[[Any], bool] | None = None

    def __init__(self) -> None:
        self.values = SCHEMA
        self.schema = pa.schema([*SCHEMA, OFFSET])

    def decode(self, records: Sequence[Any]) -> Decoded:
        """All rows of a chunk in one pass. Blocking. Never raises for bad records."""
        rows: list[tuple[Any, ...]] = []
        rejected: list[Rejected] = []
        for record in records:
            try:
                row = _row(decode(record.value, record.headers, record.key))
            except InvalidEventError as e:
                row = _refused(record, e)
            except UndecodableEventError as e:
                rejected.append(Rejected(record, f"{type(e).__name__}: {e}"))
                continue
            rows.append((*row, record.offset))
        return Decoded(table_of(rows, self.schema), rejected)


def changes_of(event: Event) -> bytes:
    """What the event sets in the projection, as JSON with sorted keys."""
    return _changes(event, (event.occurred_at - EPOCH) // MICROSECOND)


def _changes(event: Event, micros: int) -> bytes:
    changes: dict[str, Any] = {"occurred_at": micros}
    if event.event_type != DELETED:
        changes |= event.payload
        for name in TIME_FIELDS & event.payload.keys():
            if (text := event.payload[name]) is not None:
                changes[name] = (parse_time(name, str(text)) - EPOCH) // MICROSECOND
    if event.event_type == CREATED:
        changes["created_at"] = micros
    return _to_json(changes)


def _row(event: Event) -> tuple[Any, ...]:
    micros = (event.occurred_at - EPOCH) // MICROSECOND
    changes = _changes(event, micros)
    digest = _digest(event.event_type.encode(), event.aggregate_id.encode(), b"%d" % event.version, changes)
    return (
        event.event_id,
        event.event_type,
        event.aggregate_id,
        event.version,
        micros,
        changes.decode(),
        digest,
        *[None] * 5,
    )


def _refused(record: Any, error: InvalidEventError) -> tuple[Any, ...]:
    told = {name: (raw or b"").decode("utf-8", "replace") for name, raw in record.headers}
    event_id, aggregate_id = (
        text if is_uuid(text) else None for text in (told.get("event_id", ""), told.get("aggregate_id", ""))
    )
    kind, text, headers = error.kind, str(error).replace("\0", "\\0"), headers_text(record.headers)
    digest = _digest(kind.encode(), record.key or b"", record.value or b"", headers.encode())
    return (
        event_id, (told.get("event_type") or "").replace("\0", "\\0") or None, aggregate_id, None, None, None,
        digest, kind, text, record.key, record.value, headers,
    )  # fmt: skip


def headers_text(headers: Headers) -> str:
    """Headers as JSON: [[name, text], …]; [name, null, hex] where the bytes are no text that Postgres can store."""
    found: list[list[str | None]] = []
    for name, raw in headers:
        try:
            text = (raw or b"").decode()
        except UnicodeDecodeError:
            text = "\0"
        found.append([name.replace("\0", "\\0"), None, (raw or b"").hex()] if "\0" in text else [name, text])
    return _to_json(found).decode()


def _digest(*parts: bytes) -> bytes:
    return blake2b(b"".join([b"%d:%b" % (len(p), p) for p in parts]), digest_size=16).digest()
