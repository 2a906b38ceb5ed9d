"""A chunk of events as one table: good rows, refused rows, and poison to the dead letters, none in another's way."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from schemas.events import CREATED, DELETED, UPDATED
from schemas.events.codec import EVENTS, EventCodec
from schemas.log_records import LogRecord, LogRecords
from tests.support.projection import record
from tests.unit.events.events import event, payloads, types


def test_good_refused_and_poisoned_records_of_one_chunk_stay_apart() -> None:  # T13, T17, RO-89
    good = event(CREATED, 1, title="a")
    records = [
        record(good, 10),
        record(event(UPDATED, 2), 11, schema_version="v3"),
        record(event(UPDATED, 2), 12)._replace(value=b"garbage"),
        record(event(UPDATED, 2), 13)._replace(value=None),
        record(event(DELETED, 3), 15, as_json=True),
    ]
    codec = EventCodec()
    for given_records in (records, LogRecords.of(records)):
        table, rejected = codec.decode(given_records)
        assert table.schema.equals(codec.schema)
        assert table.column("_offset").to_pylist() == [10, 11, 15]
        assert table.column("error_kind").to_pylist() == [None, "schema_version", None]
        assert [r.record.offset for r in rejected] == [12, 13]
        assert "tombstone" in rejected[1].reason
        refused = table.to_pylist()[1]
        assert (refused["event_id"], refused["version"]) == (event(UPDATED, 2).event_id, None)
        assert (refused["key"], refused["value"]) == (records[1].key, records[1].value)
        first = table.to_pylist()[0]
        assert {n: first[n] for n in EVENTS[:4]} == {n: getattr(good, n) for n in EVENTS[:4]}
        micros = 1_769_860_801_000_001
        assert json.loads(first["changes"]) == {"created_at": micros, "occurred_at": micros, "title": "a"}


def test_an_empty_table_has_the_schema_too() -> None:
    codec = EventCodec()
    for records in ([], [LogRecord(0, 0, 0, None, None, ())]):
        assert codec.decode(records).table.schema.equals(codec.schema)


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=8), st.booleans()), max_size=5))
def test_no_record_whatever_stops_the_chunk(found: list[tuple[bytes, bytes, bool]]) -> None:  # T13
    good = record(event(CREATED, 1), 0)
    records = [good]
    for value, header, keep in found:
        headers = good.headers if keep else [("event_id", header), ("event_id", value), (str(header), None)]
        records.append(good._replace(offset=len(records), value=value, headers=headers))
    decoded = EventCodec().decode(records)
    assert decoded.table.num_rows + len(decoded.rejected) == len(records)
    assert decoded.table.column("event_id")[0].as_py() == event(CREATED, 1).event_id


@given(st.data(), types)
def test_the_digest_is_that_of_the_content_in_either_encoding(data: st.DataObject, kind: str) -> None:  # T49
    payload = data.draw(payloads(kind))
    one, same = event(kind, 2, 5, **payload), event(kind, 2, 6, **payload)
    other = event(kind, 3, 5, **payload)
    records = [record(one, 0), record(one, 1, as_json=True), record(same, 2), record(other, 3)]
    a, b, c, d = EventCodec().decode(records).table.column("digest").to_pylist()
    assert a == b == c != d
