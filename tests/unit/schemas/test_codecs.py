"""Wire codecs: a whole chunk at once, and never a bad record that takes its neighbours with it."""

from __future__ import annotations

import datetime as dt
import json
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.errors import ConfigError
from schemas.codecs import ArrowCodec, Codec, Decoded, JsonCodec, MsgpackCodec, make_codec
from schemas.log_records import LogRecord, LogRecords
from tests.unit.engine.logs import Record

SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string()), ("price", pa.float64())])
REQUIRED = pa.schema([pa.field("id", pa.int64(), nullable=False)])
INT64 = st.integers(-(2**63), 2**63 - 1)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "id": INT64 | st.none(),
        "name": st.text(st.characters(codec="utf-8"), max_size=12) | st.none(),
        "price": st.floats(allow_nan=False, allow_infinity=False) | st.none(),
        "unknown": st.none() | st.booleans() | st.dictionaries(st.sampled_from("ab"), INT64),
    },
)
BAD_JSON: list[bytes | None] = [
    None,
    b"",
    b" ",
    b"{",
    b"}",
    b"{}{}",
    b"{}\n{}",
    b'{"id":1}{"id":2}',
    b'{"id":1},{"id":2}',
    b'{"a":{"b":1}',
    b'{"a":"}',
    b'"}',
    b'{"id":1}\x00}',
    b'{"id":1}\x00{}',
    b"\x00",
    b"null",
    b"[]",
    b'[{"id":1}]',
    b"1",
    b'"{}"',
    b'{"id":"1"}',
    b'{"id":1.5}',
    b'{"id":9223372036854775808}',
    b'{"id":true}',
    b'{"id":{}}',
    b'{"id":1,"id":2}',
    b'{"name":"\xff"}',
    b'{"name":"\\ud800"}',
    b'{"name":7}',
    b'{"id":1} // }',
    b"\xef\xbb\xbf{}",
    b"\xff\xfe",
    bytes(range(256)),
]


def encode_arrow(table: pa.Table) -> bytes:
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return bytes(out.getvalue())


def records(values: list[Any], first: int = 100, step: int = 1) -> list[LogRecord]:
    return [Record(first + i * step, v, key=f"k{i}".encode()) for i, v in enumerate(values)]


def decode(codec: Codec, values: list[Any], **where: int) -> Decoded:
    decoded = codec.decode(LogRecords.of(records(values, **where)))
    decoded.table.validate(full=True)
    assert decoded.table.schema.names == codec.schema.names
    assert decoded.table.schema.names[-1] == "_offset"
    return decoded


def expected(row: dict[str, Any], offset: int) -> dict[str, Any]:
    return {name: row.get(name) for name in SCHEMA.names} | {"_offset": offset}


@st.composite
def mixed(draw: st.DrawFn, good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any]) -> list[tuple[bool, Any]]:
    return draw(st.lists(st.tuples(st.just(True), good) | st.tuples(st.just(False), bad), max_size=12))


def check(codec: Codec, chunk: list[tuple[bool, Any]], encode: Callable[[Any], bytes], step: int) -> None:
    """Good rows come out with their own offsets in their order; each bad record is rejected, and only they are."""
    decoded = decode(codec, [encode(v) if good else v for good, v in chunk], step=step)
    offsets = [100 + i * step for i in range(len(chunk))]
    rows = [expected(v, o) for (good, v), o in zip(chunk, offsets, strict=True) if good]
    assert decoded.table.to_pylist() == rows
    assert [r.record.offset for r in decoded.rejected] == [
        o for (good, _), o in zip(chunk, offsets, strict=True) if not good
    ]
    assert all(r.reason for r in decoded.rejected)


@given(mixed(ROWS, st.sampled_from(BAD_JSON)), st.integers(1, 3))
def test_json_rejects_bad_records_one_by_one_and_keeps_the_others(chunk: list[tuple[bool, Any]], step: int) -> None:
    check(JsonCodec(SCHEMA), chunk, lambda row: json.dumps(row, ensure_ascii=False).encode(), step)  # T13, T17


@given(st.lists(st.sampled_from(BAD_JSON), min_size=2, max_size=4))
def test_no_bad_json_hides_in_its_neighbours(values: list[Any]) -> None:
    decoded = decode(JsonCodec(SCHEMA), values)
    assert decoded.table.num_rows == 0
    assert len(decoded.rejected) == len(values)


@given(st.lists(st.binary(max_size=8).map(lambda b: b"{" + b + b"}"), min_size=1, max_size=4))
def test_whatever_stands_between_braces_one_record_is_one_row_or_one_dead_letter(values: list[bytes]) -> None:
    together = decode(JsonCodec(SCHEMA), values)
    alone = [decode(JsonCodec(SCHEMA), [v], first=100 + i) for i, v in enumerate(values)]
    assert together.table.to_pylist() == [row for d in alone for row in d.table.to_pylist()]
    assert [r.record for r in together.rejected] == [
        Record(r.record.offset, r.record.value, key=f"k{r.record.offset - 100}".encode())
        for d in alone
        for r in d.rejected
    ]


@pytest.mark.parametrize("value", [b' {"id":1}', b'{"id":1}\n\n', b'\t{\n"id"\n:1\n}\r\n'])
def test_white_space_around_and_inside_an_object_is_fine(value: bytes) -> None:
    decoded = decode(JsonCodec(SCHEMA), [b'{"id":0}', value, b'{"id":2}'])
    assert decoded.table.column("id").to_pylist() == [0, 1, 2]


def test_reasons_name_what_is_wrong() -> None:
    decoded = decode(JsonCodec(REQUIRED), [None, b"[]", b"{}{}", b"{}", b'{"id":"x"}'])
    reasons = [r.reason for r in decoded.rejected]
    assert reasons[0] == "null value (tombstone) on a topic of records"
    assert "not a JSON object" in reasons[1]
    assert len(reasons) == 5
    assert "/id" in reasons[4]


def pack(row: Any) -> bytes:
    return msgspec.msgpack.encode(row)


BAD_MSGPACK = [
    None,
    b"",
    b"\xc1",
    pack({"id": 1}) * 2,
    pack({"id": 1})[:-1],
    pack([1]),
    pack(None),
    pack({"id": "1"}),
    pack({"id": 1.5}),
    pack({"id": 2**63}),
    pack({"id": True}),
    pack({"name": b"\xff"}),
    pack({"name": 1}),
    pack({"price": "1"}),
]


@given(mixed(ROWS, st.sampled_from(BAD_MSGPACK)), st.integers(1, 3))
def test_messagepack_rejects_bad_records_one_by_one_and_keeps_the_others(
    chunk: list[tuple[bool, Any]], step: int
) -> None:  # T13
    check(MsgpackCodec(SCHEMA), chunk, pack, step)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.int32(), 1.5),
        (pa.list_(pa.int64()), [1, 2.5]),
        (pa.struct([("x", pa.int64())]), {"x": 0.5}),
        (pa.timestamp("ms"), 1.5),
    ],
)
def test_messagepack_never_cuts_a_number_to_fit(kind: pa.DataType, value: Any) -> None:
    decoded = decode(MsgpackCodec(pa.schema([("v", kind)])), [pack({"v": value})])
    assert decoded.table.num_rows == 0
    assert "would not hold it exactly" in decoded.rejected[0].reason


def test_nanoseconds_arrive_exactly_or_not_at_all() -> None:  # T36
    at = 1691999696123456789
    schema = pa.schema([("at", pa.timestamp("ns", "UTC")), ("ns", pa.int64())])
    packed = decode(MsgpackCodec(schema), [pack({"at": at, "ns": at})]).table
    text = b'{"at":"2023-08-14T07:54:56.123456789Z","ns":%d}' % at
    for table in (packed, decode(JsonCodec(schema), [text]).table):
        assert table.column("at").cast(pa.int64()).to_pylist() == [at]
        assert table.column("ns").to_pylist() == [at]
    # MessagePack's own timestamp type holds nanoseconds, Python's datetime does not.
    seconds, nanos = divmod(at, 10**9)
    extension = b"\x81\xa2at\xd7\xff" + struct.pack(">Q", nanos << 34 | seconds)
    assert decode(MsgpackCodec(schema), [extension]).table.num_rows == 0
    micros = pa.schema([("at", pa.timestamp("us", "UTC"))])
    whole = dt.datetime(2023, 8, 14, 7, 54, 56, 123456, tzinfo=dt.UTC)
    assert decode(MsgpackCodec(micros), [pack({"at": whole})]).table.column("at").to_pylist() == [whole]


@given(st.lists(st.binary(max_size=20) | st.sampled_from([b"", b"\0", b"a\nb", b'"', b"\xff\xfe", b"k" * 100_000])))
def test_binary_keys_keep_their_bytes(keys: list[bytes]) -> None:  # T34
    made = [Record(i, b'{"id":1}' if i % 3 else b"bad", key=k) for i, k in enumerate(keys)]
    table = JsonCodec(SCHEMA, keys=True).decode(made).table
    assert table.column("_key").to_pylist() == [k for i, k in enumerate(keys) if i % 3]
    assert table.column("_offset").to_pylist() == [i for i in range(len(keys)) if i % 3]


@given(st.lists(st.lists(st.binary(max_size=9), max_size=4), max_size=5))
def test_binary_values_pass_through_arrow_and_messagepack_unchanged(messages: list[list[bytes]]) -> None:  # T34
    schema = pa.schema([("key", pa.binary())])
    table = decode(ArrowCodec(schema), [encode_arrow(pa.table({"key": m}, schema=schema)) for m in messages]).table
    flat = [key for m in messages for key in m]
    assert table.column("key").to_pylist() == flat
    assert table.column("_offset").to_pylist() == [100 + i for i, m in enumerate(messages) for _ in m]
    packed = decode(MsgpackCodec(schema), [pack({"key": key}) for key in flat]).table
    assert packed.column("key").to_pylist() == flat


GOOD_ARROW = encode_arrow(pa.table({"id": [1, 2], "name": ["a", None], "price": [0.5, None]}, schema=SCHEMA))
BAD_ARROW = [
    None,
    b"",
    b"garbage" * 20,
    GOOD_ARROW[:40],
    GOOD_ARROW[: len(GOOD_ARROW) // 2],
    encode_arrow(pa.table({"id": [1]})),
    encode_arrow(pa.table({"id": ["x"], "name": ["n"], "price": [1.0]})),
    encode_arrow(pa.table({"id": [1.5], "name": ["n"], "price": [1.0]})),
]


@given(st.lists(st.booleans(), max_size=6).flatmap(lambda goods: st.tuples(*map(_arrow_value, goods))))
def test_arrow_rejects_bad_records_one_by_one_and_keeps_the_others(values: tuple[Any, ...]) -> None:  # T13, T17
    decoded = decode(ArrowCodec(SCHEMA), list(values))
    good = [100 + i for i, v in enumerate(values) if v is GOOD_ARROW]
    assert decoded.table.column("_offset").to_pylist() == [o for o in good for _ in range(2)]
    assert decoded.table.column("id").to_pylist() == [1, 2] * len(good)
    assert len(decoded.rejected) == len(values) - len(good)


def _arrow_value(good: bool) -> st.SearchStrategy[Any]:
    return st.just(GOOD_ARROW) if good else st.sampled_from(BAD_ARROW)


def test_arrow_accepts_columns_in_another_order_and_of_a_type_that_fits() -> None:
    other = pa.table({"price": [1.0], "extra": [True], "name": ["n"], "id": pa.array([7], pa.int16())})
    row = decode(ArrowCodec(SCHEMA), [encode_arrow(other)]).table.to_pylist()
    assert row == [{"id": 7, "name": "n", "price": 1.0, "_offset": 100}]


def test_arrow_rejects_nulls_where_none_are_allowed() -> None:
    hidden = pa.Table.from_arrays([pa.array([None, 1], pa.int64())], schema=REQUIRED)
    decoded = decode(ArrowCodec(REQUIRED), [encode_arrow(hidden)])
    assert "'id' is missing or null" in decoded.rejected[0].reason


def test_rows_of_an_arrow_message_are_counted_without_decoding_it() -> None:
    codec = ArrowCodec(SCHEMA)
    assert codec.rows_of is not None
    assert codec.rows_of(Record(0, GOOD_ARROW)) == 2
    assert [codec.rows_of(Record(0, v)) for v in BAD_ARROW[:4]] == [1, 1, 1, 1]


def test_a_codec_that_cannot_be_made_says_why() -> None:
    with pytest.raises(ConfigError, match="must be one of json, msgpack, arrow"):
        make_codec("avro", SCHEMA)
    with pytest.raises(ConfigError, match="_offset"):
        make_codec("json", pa.schema([("_offset", pa.int64())]))
    with pytest.raises(ConfigError, match="put the key into the rows"):
        make_codec("arrow", SCHEMA, keys=True)
