"""Headers, bodies and facts on the wire."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.batch import Batch, Run
from schemas.control import (
    BATCH,
    KIND,
    ROWS,
    RUN,
    Abort,
    AbortBatch,
    Begin,
    Begun,
    Done,
    FactCodec,
    InstanceDone,
    InstanceFailed,
    Progress,
    Where,
    announced_rows,
    decode_fact,
    encode_fact,
    headers_of,
    label_of,
    read_body,
)
from schemas.rdb import RdbCodec, split
from schemas.records import ENCODINGS, TYPES, WIRE

RUN_A = Run(Batch("c", 1_795_000_000_123_456_789), "10.0.0.1:6379", "a" * 32)
RUN_B = Run(Batch("c", 1_795_000_000_123_456_789), "10.0.0.2:6379", "b" * 32)

names = st.text(min_size=1).filter(lambda t: "\ud800" not in t and t.encode("utf-8", "ignore").decode() == t)


@given(names, names, st.integers(0, 4_000_000_000_000_000_000), st.integers(0, 10_000_000))
def test_headers_carry_any_names_and_every_nanosecond(cluster: str, instance: str, ts: int, rows: int) -> None:
    run = Run(Batch(cluster, ts), instance, "0123456789abcdef" * 2)  # T15, T36
    assert label_of(headers_of("rows", run, rows)) == ("rows", run, rows)
    assert label_of(headers_of("begin", run)) == ("begin", run, 0)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (KIND, None, "millstream.kind is missing"),
        (KIND, b"row", "begin, rows, done or abort"),
        (RUN, b"A" * 32, "32 hexadecimal digits"),
        (BATCH, b"yesterday/c", "RFC 3339"),
        (BATCH, b"2026-11-23T08:30:00Z/c", "nine digits"),
        (BATCH, b"2026-11-23T08:30:00.000000000Z/", "nine digits"),
        (BATCH, b"\xff", "decode"),
        (ROWS, None, "millstream.rows is None"),
        (ROWS, b"-1", "a number up to"),
        (ROWS, b"99999999", "a number up to"),
    ],
)
def test_a_header_that_is_wrong_is_named(name: str, value: bytes | None, says: str) -> None:
    headers = [(k, v) for k, v in headers_of("rows", RUN_A, 5) if k != name]
    if value is not None:
        headers.append((name, value))
    with pytest.raises(ValueError, match=says):
        label_of(headers)


def test_of_repeated_headers_the_last_one_counts() -> None:
    headers = [(KIND, b"begin"), *headers_of("rows", RUN_A, 5)]  # T60
    assert label_of(headers).kind == "rows"


@pytest.mark.parametrize("value", [b"", b"x", b"-3", b"1" * 9, b"99999999", "²".encode()])
def test_an_absurd_number_of_rows_counts_as_one(value: bytes) -> None:
    assert announced_rows([(ROWS, value)]) == 1


def test_bodies_round_trip_and_ignore_fields_of_later_days() -> None:
    for kind, body in (
        ("begin", Begin(instances=["a", "b"], source={"path": "x"})),
        ("done", Done(rows=1, messages=2, digest=2**64 - 1, begin=7)),
        ("abort", Abort(reason="why")),
    ):
        fields: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(body))
        assert read_body(kind, msgspec.json.encode(fields | {"later": 1})) == body
        with pytest.raises(ValueError, match="version 2"):
            read_body(kind, msgspec.json.encode(fields | {"v": 2}))


@pytest.mark.parametrize("value", [None, b"", b"{}", b"[]", b'{"rows": "many"}', b"\xff"])
def test_a_body_that_is_none_is_an_error_and_no_crash(value: bytes | None) -> None:
    with pytest.raises(ValueError, match="done record"):
        read_body("done", value)


WHERE = Where(topic="t", topic_id="i", epoch=1, partition=0, begin=0, done=9)
FACTS = [
    Begun(run="r", instance="a", instances=["a"], where=WHERE),
    Progress(run="r", instance="a", first=1, last=2, rows=3, dead_letters=0, messages=1, digest=9),
    InstanceDone(run="r", instance="a", stored=3, rows=3, messages=1, digest=9, where=WHERE),
    InstanceFailed(run="r", instance="a", reason="why"),
    AbortBatch(reason="why"),
]


@pytest.mark.parametrize("fact", FACTS, ids=lambda f: type(f).__name__)
def test_facts_round_trip(fact: Any) -> None:
    assert decode_fact(encode_fact(fact)) == fact


def record(offset: int, value: bytes | None, key: bytes = b"", headers: Any = ()) -> Any:
    return SimpleNamespace(offset=offset, timestamp=1000 + offset, key=key, value=value, headers=headers)


def test_facts_that_are_not_known_are_dead_letters_and_take_no_neighbour_with_them() -> None:
    key = RUN_A.batch.key.encode()  # T13
    good = encode_fact(FACTS[4])
    records = [
        record(0, good, key),
        record(1, b'{"fact":"later","v":1}', key),
        record(2, good.replace(b'"v":1', b'"v":9'), key),
        record(3, None, key),
        record(4, good, b"no batch"),
        record(5, good, b"\xff"),
        record(6, good, key),
    ]
    assert len(good) > 10
    decoded = FactCodec().decode(records)
    assert decoded.table.column("_offset").to_pylist() == [0, 6]
    assert [r.record.offset for r in decoded.rejected] == [1, 2, 3, 4, 5]
    assert "version 9" in decoded.rejected[1].reason
    assert decoded.table.column("at_ms").to_pylist() == [1000, 1006]


# ---------------------------------------------------------------------- rows
def wire(keys: list[bytes]) -> bytes:
    n = len(keys)
    columns = {
        "db": pa.array([0] * n, pa.int64()),
        "key": pa.array(keys, pa.binary()),
        "type": pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int8()), pa.array(TYPES)),
        "member_count": pa.array([1] * n, pa.int64()),
        "rdb_size": pa.array([7] * n, pa.int64()),
        "encoding": pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int8()), pa.array(ENCODINGS)),
    }
    arrays = [columns.get(f.name, pa.nulls(n, f.type)) for f in WIRE]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, WIRE) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=WIRE))
    return bytes(sink.getvalue())


def rows(offset: int, run: Run, keys: list[bytes], value: bytes | None = None, announced: int | None = None) -> Any:
    headers = headers_of("rows", run, len(keys) if announced is None else announced)
    return record(offset, wire(keys) if value is None else value, run.instance.encode(), headers)


def test_rows_of_several_runs_in_one_chunk_are_told_apart() -> None:
    records = [  # the shared layout
        rows(10, RUN_A, [b"a1", b"a2"]),
        rows(11, RUN_B, [b"b1"]),
        rows(12, RUN_A, [b"a3"]),
        rows(13, RUN_A, [b"a4"]),
    ]
    decoded = RdbCodec().decode(records)
    parts = {p.run: p for p in split(records, *decoded)}
    assert parts[RUN_A].table.column("key").to_pylist() == [b"a1", b"a2", b"a3", b"a4"]
    assert parts[RUN_A].table.column("_offset").to_pylist() == [10, 10, 12, 13]
    assert parts[RUN_B].table.column("key").to_pylist() == [b"b1"]
    assert [(p.messages, p.dead_letters) for p in parts.values()] == [(3, 0), (1, 0)]


def test_a_message_that_cannot_be_decoded_counts_with_the_rows_it_announced() -> None:
    records = [  # T13
        rows(0, RUN_A, [b"a"]),
        rows(1, RUN_A, [], b"garbage", announced=70),
        rows(2, RUN_A, [b"c"]),
        rows(3, RUN_A, [b"d", b"e"], announced=3),
        rows(4, RUN_A, [], b"", announced=0),
    ]
    decoded = RdbCodec().decode(records)
    assert [r.record.offset for r in decoded.rejected] == [1, 3, 4]
    assert "holds 2 rows, its header says 3" in decoded.rejected[1].reason
    (part,) = split(records, *decoded)
    assert part.table.column("key").to_pylist() == [b"a", b"c"]
    assert (part.messages, part.dead_letters) == (5, 73)


def test_a_record_without_headers_belongs_to_no_run_and_is_a_dead_letter() -> None:
    records = [rows(0, RUN_A, [b"a"]), record(1, wire([b"x"])), record(2, None)]
    decoded = RdbCodec().decode(records)
    assert len(decoded.rejected) == 2
    (part,) = split(records, *decoded)
    assert (part.run, part.messages) == (RUN_A, 1)


def test_a_wrong_index_into_the_dictionary_is_a_dead_letter() -> None:
    bad = wire([b"a"])
    index = pa.array([120], pa.int8())
    columns = list(pa.ipc.open_stream(bad).read_all().to_batches()[0].columns)
    columns[2] = pa.DictionaryArray.from_arrays(index, pa.array(TYPES), safe=False)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, WIRE) as writer:
        writer.write_batch(pa.record_batch(columns, schema=WIRE))
    decoded = RdbCodec().decode([rows(0, RUN_A, [b"a"], bytes(sink.getvalue()))])
    assert len(decoded.rejected) == 1


@given(st.lists(st.tuples(st.sampled_from("ABx"), st.integers(0, 4)), min_size=1, max_size=20))
def test_split_loses_and_invents_nothing(shape: list[tuple[str, int]]) -> None:
    records = []
    expected: dict[Run, list[bytes]] = {}
    for offset, (who, n) in enumerate(shape):
        run = RUN_B if who == "B" else RUN_A
        keys = [b"%d-%d" % (offset, i) for i in range(n)]
        if who == "x":
            records.append(rows(offset, run, [], b"?", announced=n))
            expected.setdefault(run, [])
        else:
            records.append(rows(offset, run, keys))
            expected.setdefault(run, []).extend(keys)
    parts = split(records, *RdbCodec().decode(records))
    assert {p.run: p.table.column("key").to_pylist() for p in parts} == expected
    assert sum(p.messages for p in parts) == len(records)
    assert sum(p.dead_letters for p in parts) == sum(n for who, n in shape if who == "x")


def test_control_records_get_a_chunk_of_their_own_and_rows_are_counted_by_header() -> None:
    codec = RdbCodec()
    assert codec.is_control
    assert codec.rows_of
    assert codec.is_control(record(0, b"", headers=headers_of("done", RUN_A)))
    assert not codec.is_control(rows(0, RUN_A, [b"a"]))
    assert codec.rows_of(rows(0, RUN_A, [b"a", b"b"])) == 2
    assert not codec.is_control(record(0, b""))
