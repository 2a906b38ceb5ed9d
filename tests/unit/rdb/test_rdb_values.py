"""Every type byte and opcode, built by hand: servers at hand no longer write many of them."""

from __future__ import annotations

import io
import struct

import pytest

from schemas.records import ENCODINGS, TYPES
from sources.rdb import RdbReader
from sources.rdb.values import REDIS_VALUES, VALKEY_VALUES
from tests.unit.rdb.rdb_builder import (
    COMMON,
    FLAT,
    OPCODES,
    REDIS_ONLY,
    VALKEY_ONLY,
    compressed,
    entry,
    everything,
    file,
    length,
    listpack,
    parse,
    string,
    ziplist,
)

CASES = [(b"REDIS0012", *case) for case in COMMON + REDIS_ONLY] + [
    (b"VALKEY080", *case) for case in COMMON + VALKEY_ONLY
]
PAD = [entry(0, b"pad %d" % i, string(b"p" * 40)) for i in range(8)]
"""Keys behind the one under test: the window is then long enough for the fast loop."""


@pytest.mark.parametrize(
    ("magic", "name", "code", "value", "want"), CASES, ids=[f"{c[0].decode()} {c[1]}" for c in CASES]
)
@pytest.mark.parametrize("buffer_size", [5, 1 << 20])
def test_a_value_built_by_hand_gives_its_row(
    magic: bytes, name: str, code: int, value: bytes, want: tuple[str, str, int], buffer_size: int
) -> None:
    if len(value) > 10_000:
        buffer_size = max(buffer_size, 1000)
    one = entry(code, b"the key", value)
    rows = parse(file(one, *PAD, magic=magic), buffer_size=buffer_size)
    assert len(rows) == 1 + len(PAD)
    row = rows[0]
    assert (row["type"], row["encoding"], row["member_count"]) == want
    assert row["key"] == b"the key"
    assert row["rdb_size"] == len(one)
    assert (row["expire_at_ms"], row["idle_seconds"], row["freq"]) == (None, None, None)
    assert [r["rdb_size"] for r in rows[1:]] == [len(pad) for pad in PAD]


def test_every_type_byte_is_tested() -> None:
    assert {case[2] for case in CASES if case[0] == b"REDIS0012"} == REDIS_VALUES.keys() - {6}
    assert {case[2] for case in CASES if case[0] == b"VALKEY080"} == VALKEY_VALUES.keys() - {6}
    words = {(TYPES[type_], ENCODINGS[encoding]) for type_, encoding, _ in REDIS_VALUES.values()}
    assert {case[4][:2] for case in CASES} == words | {("string", "int"), ("string", "lzf")}


@pytest.mark.parametrize(("name", "opcode"), OPCODES, ids=[name for name, _ in OPCODES])
@pytest.mark.parametrize("buffer_size", [5, 1 << 20])
def test_an_opcode_that_concerns_no_key_is_passed_over(name: str, opcode: bytes, buffer_size: int) -> None:
    rows = parse(file(opcode, *PAD, opcode, opcode, *PAD, opcode), buffer_size=buffer_size)
    assert [row["key"] for row in rows] == [b"pad %d" % i for i in range(8)] * 2


def test_the_size_of_far_with_value_x_is_seven() -> None:
    attributes = b"\xfc" + bytes(8) + b"\xf8\x05"
    (row,) = parse(file(attributes + entry(0, b"far", string(b"x"))))
    assert row["rdb_size"] == 7


@pytest.mark.parametrize(
    ("stored", "key"),
    [
        (b"\xc0\x2a", b"42"),
        (b"\xc0\xff", b"-1"),
        (b"\xc1\x00\x80", b"-32768"),
        (b"\xc2\xff\xff\xff\x7f", b"2147483647"),
        (string(b""), b""),
        (string(b"\x00\n'\"\\\xff\xfe"), b"\x00\n'\"\\\xff\xfe"),
        (string(b"k" * 63), b"k" * 63),
        (string(b"k" * 64), b"k" * 64),
        (string(b"k" * 20_000), b"k" * 20_000),
        (compressed(b"k" * 500), b"k" * 500),
        (b"\x40\x03abc", b"abc"),
        (b"\x80\x00\x00\x00\x03abc", b"abc"),
    ],
)
def test_keys_come_out_byte_for_byte(stored: bytes, key: bytes) -> None:  # T34
    one = b"\x00" + stored + string(b"value")
    for buffer_size in (7, 1 << 20):
        row, *others = parse(file(one, *PAD), buffer_size=buffer_size)
        assert row["key"] == key
        assert row["rdb_size"] == len(one)
        assert [other["key"] for other in others] == [b"pad %d" % i for i in range(8)]


def test_a_key_of_one_megabyte_is_a_batch_of_its_own() -> None:  # T34
    key = bytes(range(256)) * 4096
    data = file(*PAD, entry(0, key, string(b"v")), *PAD)
    batches = [batch.column("key").to_pylist() for batch in RdbReader(io.BytesIO(data))]
    pads = [b"pad %d" % i for i in range(8)]
    assert batches == [pads, [key], pads]


@pytest.mark.parametrize("at", [2**63 - 1, 253_402_300_800_000, 1, 0, -1, -(2**63)])
def test_any_expiry_is_kept_as_it_is(at: int) -> None:  # T35
    expiring = [b"\xfc" + struct.pack("<q", at) + entry(0, b"k", string(b"v")), *PAD]
    for buffer_size in (7, 1 << 20):
        row, *others = parse(file(*expiring), buffer_size=buffer_size)
        assert row["expire_at_ms"] == at
        assert all(other["expire_at_ms"] is None for other in others)


@pytest.mark.parametrize("seconds", [2**31 - 1, 0, -1])
def test_an_expiry_in_seconds_becomes_milliseconds(seconds: int) -> None:  # built by hand: Redis before 2.6
    row, *_ = parse(file(b"\xfd" + struct.pack("<i", seconds) + entry(0, b"k", string(b"v")), *PAD))
    assert row["expire_at_ms"] == seconds * 1000


@pytest.mark.parametrize("idle", [0, 63, 64, 16_383, 16_384, 2**32 - 1, 2**63 - 1])
def test_idle_times_of_every_length(idle: int) -> None:
    row, *others = parse(file(b"\xf8" + length(idle) + entry(0, b"k", string(b"v")), *PAD))
    assert row["idle_seconds"] == idle
    assert others[0]["idle_seconds"] is None


@pytest.mark.parametrize("freq", [0, 1, 255])
def test_frequencies(freq: int) -> None:
    row, *others = parse(file(bytes([0xF9, freq]) + entry(0, b"k", string(b"v")), *PAD))
    assert row["freq"] == freq
    assert others[0]["freq"] is None


def test_attributes_in_another_order_belong_to_the_next_key() -> None:
    odd = b"\xf9\x07" + b"\xfa" + string(b"a") + string(b"b") + b"\xfe\x03" + b"\xfc" + bytes(8)
    first, second, *_ = parse(file(odd + entry(0, b"k", string(b"v")), *PAD))
    assert (first["freq"], first["expire_at_ms"], first["db"]) == (7, 0, 3)
    assert (second["freq"], second["expire_at_ms"], second["db"]) == (None, None, 3)


def test_databases_are_told_apart() -> None:  # T41
    same = entry(0, b"k", string(b"v" * 60))
    data = file(same, b"\xfe\x01", same, same, b"\xfe\x02", b"\xfe\x80\x00\x01\x00\x00", same * 5, b"\xfe\x00", same)
    for buffer_size in (9, 1 << 20):
        assert [row["db"] for row in parse(data, buffer_size=buffer_size)] == [0, 1, 1, *[65_536] * 5, 0]


@pytest.mark.parametrize("pack", [listpack, ziplist])
@pytest.mark.parametrize("wrap", [string, compressed])
def test_a_header_that_does_not_tell_the_count_is_made_up_for(pack, wrap) -> None:
    code = 16 if pack is listpack else 13
    for elements in (FLAT * 5, FLAT * 40):
        blob = wrap(pack(elements, 65_535))
        for buffer_size in (7, 1 << 20):
            row, *_ = parse(file(entry(code, b"k", blob), *PAD), buffer_size=buffer_size)
            assert row["member_count"] == len(elements) // 2


LISTPACK_ENTRIES = [
    b"\x7f\x01",
    b"\x83abc\x04",
    b"\xdf\xff\x02",
    b"\xe1\x00" + b"x" * 256 + b"\x02\x82",
    b"\xf0\x00\x50\x00\x00" + b"y" * 20_480 + b"\x01\x20\x85",
    b"\xf1\x01\x02\x03",
    b"\xf2\x01\x02\x03\x04",
    b"\xf3\x01\x02\x03\x04\x05",
    b"\xf4\x01\x02\x03\x04\x05\x06\x07\x08\x09",
]
ZIPLIST_ENTRIES = [
    b"\x00\x03abc",
    b"\x05\x41\x00" + b"x" * 256,
    b"\xfe\x03\x01\x00\x00\x80\x00\x00\x50\x00" + b"y" * 20_480,
    *(
        b"\x05" + bytes([first]) + bytes(size)
        for first, size in ((0xC0, 2), (0xD0, 4), (0xE0, 8), (0xF0, 3), (0xFE, 1))
    ),
    b"\x03\xf1",
    b"\x02\xfd",
]


def test_every_form_of_listpack_entry_is_walked_over() -> None:
    body = b"".join(LISTPACK_ENTRIES)
    blob = struct.pack("<IH", len(body) + 7, 65_535) + body + b"\xff"
    row, *_ = parse(file(entry(20, b"k", string(blob)), *PAD))
    assert row["member_count"] == len(LISTPACK_ENTRIES)


def test_every_form_of_ziplist_entry_is_walked_over() -> None:
    body = b"".join(ZIPLIST_ENTRIES)
    blob = struct.pack("<IIH", len(body) + 11, 0, 65_535) + body + b"\xff"
    row, *_ = parse(file(entry(10, b"k", string(blob)), *PAD))
    assert row["member_count"] == len(ZIPLIST_ENTRIES)


@pytest.mark.parametrize("version", range(1, 13))
def test_redis_versions_one_to_twelve_are_read(version: int) -> None:
    data = file(*PAD, magic=b"REDIS%04d" % version)
    reader = RdbReader(io.BytesIO(data))
    assert sum(batch.num_rows for batch in reader) == 8
    assert reader.version == version
    assert reader.position.magic == f"REDIS{version:04d}"


@pytest.mark.parametrize("size", [30, 300, 700])
def test_attributes_of_keys_that_a_window_cuts_apart(size: int) -> None:
    parts, want = [], []
    for i in range(300):
        at, idle, freq = (i, None, None) if i % 3 == 0 else (i, i, None) if i % 3 == 1 else (i, None, i % 256)
        attributes = b"\xfc" + struct.pack("<q", at)
        attributes += b"\xf8" + length(i) if idle is not None else bytes([0xF9, freq]) if freq is not None else b""
        key = b"\xc1" + struct.pack("<h", i) if i % 2 else string(b"key %d" % i)
        parts.append(attributes + b"\x00" + key + string(b"v" * (size + i % 7)))
        want.append((b"%d" % i if i % 2 else b"key %d" % i, at, idle, freq))
    for buffer_size in (400, 997, 3001, 1 << 20):
        rows = parse(file(*parts), buffer_size=buffer_size)
        assert [(row["key"], row["expire_at_ms"], row["idle_seconds"], row["freq"]) for row in rows] == want


def test_an_empty_database_gives_no_batch() -> None:
    assert parse(file()) == []


@pytest.mark.parametrize("magic", [b"REDIS0012", b"VALKEY080"])
def test_all_of_it_in_one_file_whatever_the_buffer(magic: bytes) -> None:
    data = everything(magic, limit=100_000)
    rows = parse(data)
    assert len(rows) > 40
    for buffer_size in (50, 117, 1000, 5000):
        assert parse(data, buffer_size=buffer_size) == rows
