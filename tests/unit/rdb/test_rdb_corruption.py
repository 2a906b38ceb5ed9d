"""Broken files give CorruptSourceError with file and offset: never another error, a hang, or memory without bound."""

from __future__ import annotations

import io
import re
import struct
import time
import tracemalloc
from typing import BinaryIO, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.errors import ConfigError, CorruptSourceError
from sources.rdb import Position, RdbReader
from tests.unit.rdb.rdb_builder import (
    FIXTURES,
    FLAT,
    compressed,
    entry,
    everything,
    file,
    intset,
    length,
    listpack,
    parse,
    string,
    ziplist,
)

SMALL = {
    "redis": everything(),
    "valkey": everything(b"VALKEY080"),
    "lfu": (FIXTURES / "redis8.2-lfu.rdb").read_bytes(),
    "lru": (FIXTURES / "redis6.2-lru.rdb").read_bytes(),
    "module": (FIXTURES / "redis8.2-module.rdb").read_bytes(),
    "cluster": (FIXTURES / "valkey9-cluster.rdb").read_bytes(),
}
UNCHECKED = {"redis": everything(checksum=False), "valkey": everything(b"VALKEY080", checksum=False)}
PAD = b"".join(entry(0, b"pad %d" % i, string(b"p" * 40)) for i in range(8))


class Pipe(io.RawIOBase):
    """A stream that cannot seek and gives a few bytes at a time, like a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 100))


def error_of(data: bytes, **options: int) -> str:
    with pytest.raises(CorruptSourceError) as caught:
        parse(data, **options)
    text = str(caught.value)
    assert text.startswith("test.rdb: ")
    found = re.search(r"at byte (\d+)$", text)
    assert found, text
    assert int(found[1]) <= len(data), text
    return text


@pytest.mark.parametrize("name", SMALL)
def test_a_file_cut_off_at_any_byte_is_refused(name: str) -> None:
    data = SMALL[name]
    for end in range(len(data)):
        assert "truncated" in error_of(data[:end])


@pytest.mark.parametrize("name", ["lfu", "lru", "module", "cluster"])
def test_a_file_cut_off_at_any_byte_is_refused_by_a_small_window(name: str) -> None:
    data = SMALL[name]
    for end in range(len(data)):
        assert "truncated" in error_of(data[:end], buffer_size=60)


@pytest.mark.parametrize("name", ["redis8.2-all", "valkey9-uncompressed", "redis6.2-all"])
def test_a_large_file_cut_off_is_refused(name: str) -> None:
    data = (FIXTURES / f"{name}.rdb").read_bytes()
    for end in range(9, len(data), 401):
        error_of(data[:end])


def test_a_stream_that_ends_early_is_refused() -> None:
    data = SMALL["redis"]
    for end in range(0, len(data), 7):
        with pytest.raises(CorruptSourceError, match=r"^a socket: .*truncated.*at byte"):
            list(RdbReader(cast(BinaryIO, Pipe(data[:end])), name="a socket"))


def test_a_stream_that_cannot_seek_is_read_all_the_same() -> None:
    got = [row for batch in RdbReader(cast(BinaryIO, Pipe(SMALL["redis"]))) for row in batch.to_pylist()]
    assert got == parse(SMALL["redis"])


def test_resuming_needs_a_file_that_can_seek() -> None:
    with pytest.raises(ConfigError, match="cannot seek"):
        RdbReader(cast(BinaryIO, Pipe(b"")), resume=Position(9, 0, "REDIS0012", 0, 0))


@pytest.mark.parametrize("option", ["batch_rows", "batch_bytes", "buffer_size"])
def test_limits_below_one_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        parse(file(), **{option: 0})


@pytest.mark.parametrize("at", range(20, 800, 37))
def test_a_changed_byte_is_found_by_the_checksum(at: int) -> None:
    data = bytearray(SMALL["lfu"])
    data[at] ^= 1
    error_of(bytes(data))


def test_the_checksum_error_names_both_values_and_its_place() -> None:
    data = bytearray(file(PAD))
    data[-1] ^= 0xFF
    text = error_of(bytes(data))
    assert "checksum" in text
    assert text.endswith(f"at byte {len(data) - 8}")


def test_a_checksum_of_zero_means_none() -> None:
    assert len(parse(file(PAD, checksum=False))) == 8


@pytest.mark.parametrize("extra", [b"\x00", b"*1\r\n$4\r\nPING\r\n"])
def test_bytes_behind_the_end_are_refused(extra: bytes) -> None:
    assert "bytes follow the end" in error_of(file(PAD) + extra)
    assert "bytes follow the end" in error_of(file(PAD) + extra, buffer_size=3)


@pytest.mark.parametrize("code", [8, 26, 27, 100, 200, 242])
def test_an_unknown_type_is_named_with_what_is_supported(code: int) -> None:
    data = file(PAD, entry(code, b"k", string(b"v")), PAD)
    for buffer_size in (5, 1 << 20):
        text = error_of(data, buffer_size=buffer_size)
        assert f"unknown type or opcode {code}; supported are Redis RDB versions 1 to 12" in text
        assert "VALKEY080" in text
        assert text.endswith(f"at byte {9 + len(PAD)}")


@pytest.mark.parametrize("code", [23, 24, 25])
def test_types_of_redis_alone_are_unknown_in_a_valkey_file(code: int) -> None:
    text = error_of(file(entry(code, b"k", string(b"v")), magic=b"VALKEY080"))
    assert f"unknown type or opcode {code}" in text


@pytest.mark.parametrize("magic", [b"REDIS0000", b"REDIS0013", b"REDIS9999", b"VALKEY081", b"RUBBISH!!", b"REDIS 012"])
def test_other_versions_and_other_files_are_refused(magic: bytes) -> None:
    text = error_of(file(PAD, magic=magic))
    assert magic.decode() in text
    assert "supported are" in text
    assert text.endswith("at byte 0")


@pytest.mark.parametrize("claim", [2**31, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize(
    "build",
    [
        lambda n: b"\x00" + length(n) + b"key",
        lambda n: b"\x00" + string(b"k") + length(n) + b"value",
        lambda n: b"\x00\xc3\x05" + length(n) + b"\x04hello" + string(b"v"),
        lambda n: b"\x00\xc3" + length(n) + b"\x05\x04hello" + string(b"v"),
        lambda n: entry(16, b"k", b"\xc3\x05" + length(n) + b"\x04hello"),
        lambda n: entry(16, b"k", length(n) + b"\x04hello"),
        lambda n: entry(1, b"k", length(n) + string(b"v")),
        lambda n: entry(3, b"k", length(n) + string(b"v")),
        lambda n: entry(4, b"k", length(n) + string(b"v")),
        lambda n: entry(5, b"k", length(n) + string(b"v")),
        lambda n: entry(14, b"k", length(n) + string(b"v")),
        lambda n: entry(18, b"k", length(n) + string(b"v")),
        lambda n: entry(21, b"k", length(n) + string(b"v")),
        lambda n: entry(22, b"k", length(n) + string(b"v")),
        lambda n: b"\xf3" + string(b"job") + length(n),
    ],
)
def test_a_length_that_the_file_cannot_hold_is_refused_at_once(build, claim: int) -> None:
    data = file(PAD, build(claim), PAD)
    tracemalloc.start()
    try:
        began = time.monotonic()
        for buffer_size in (50, 1 << 20):
            assert "it ends here" not in error_of(data, buffer_size=buffer_size)
        assert time.monotonic() - began < 5
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


BAD_VALUES = {
    "listpack with another size": (16, string(listpack(FLAT)[:-1] + b"\x00\xff")),
    "listpack too short": (16, string(b"\x03\x00\x00")),
    "listpack too short for its header": (20, string(struct.pack("<IH", 6, 0))),
    "ziplist too short for its end": (10, string(struct.pack("<IIH", 10, 10, 0))),
    "empty listpack string": (20, string(b"")),
    "hash of an odd number": (16, string(listpack([b"a"]))),
    "zset ziplist of an odd number": (12, string(ziplist([b"a"]))),
    "compressed hash of an odd number": (16, compressed(listpack([b"same"] * 41))),
    "listpack as integer": (16, b"\xc0\x01"),
    "field, value and time, one too many": (23, string(listpack([b"a"] * 4))),
    "intset of another size": (11, string(intset([1, 2])[:-1])),
    "intset of a width of 3": (11, string(struct.pack("<II", 3, 2) + bytes(6))),
    "intset too short": (11, string(b"\x02")),
    "ziplist with another size": (13, string(ziplist(FLAT) + b"\xff")),
    "ziplist of unknown count that runs out": (13, string(ziplist(FLAT, 65_535)[:-1] + b"\x05")),
    "listpack of unknown count that runs out": (16, string(listpack(FLAT, 65_535)[:-1] + b"\x01")),
    "listpack of unknown count with a strange entry": (
        16,
        string(struct.pack("<IH", 9, 65_535) + b"\xf9\x01\xff"),
    ),
    "ziplist of unknown count with a strange entry": (13, string(struct.pack("<IIH", 13, 0, 65_535) + b"\x00\xc5\xff")),
    "zipmap that ends at a value": (9, string(b"\xfe\x01k\xff")),
    "zipmap that runs out": (9, string(b"\xfe\x05k")),
    "LZF that looks back too far": (16, b"\xc3\x04\x20\x20\x30\x00\x00"),
    "LZF of another size": (16, b"\xc3\x08" + length(500) + b"\x06" + struct.pack("<IH", 500, 65_535) + b"\0"),
    "string of an unknown encoding": (0, b"\xc4\x01"),
    "length of an unknown encoding": (0, b"\x82\x01\x01\x01\x01"),
    "list of special length": (1, b"\xc0\x01"),
    "quicklist container": (18, length(1) + length(3) + string(b"v")),
    "module value": (7, length(99) + length(6)),
    "module before 4.0": (6, length(99) + length(0)),
    "stream of 2**63 messages": (15, length(0) + length(2**63) + bytes(3)),
}


@pytest.mark.parametrize("name", BAD_VALUES)
@pytest.mark.parametrize("buffer_size", [5, 1 << 20])
def test_a_value_that_contradicts_itself_is_refused(name: str, buffer_size: int) -> None:
    code, value = BAD_VALUES[name]
    data = file(PAD, entry(code, b"k", value), PAD)
    text = error_of(data, buffer_size=buffer_size)
    assert "checksum" not in text
    assert int(text.rsplit(" ", 1)[1]) >= 9 + len(PAD), text


@pytest.mark.parametrize("opcode", [b"\xf8" + length(2**63), b"\xfe" + length(2**63), b"\xfe\xc0\x01"])
def test_numbers_beyond_the_columns_are_refused(opcode: bytes) -> None:
    error_of(file(PAD, opcode, PAD))


def test_a_key_that_does_not_decompress_is_refused() -> None:
    error_of(file(PAD, b"\x00\xc3\x05\x20\x04hello", string(b"v"), PAD))
    error_of(file(PAD, b"\x00\xc3\x03\x20\xff\xff\xff", string(b"v"), PAD))


flips = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), min_size=1, max_size=8)


def survive(data: bytes, buffer_size: int) -> None:
    """Rows or CorruptSourceError; anything else fails the test."""
    try:
        rows = parse(data, buffer_size=buffer_size)
    except CorruptSourceError as error:
        text = str(error)
    else:
        text = "at byte" * (len(rows) < len(data))
    assert "at byte" in text


@settings(max_examples=400)
@given(st.sampled_from(sorted(UNCHECKED)), flips, st.sampled_from([40, 300, 1 << 20]))
def test_flipped_bytes_give_rows_or_the_error(name: str, changes: list[tuple[int, int]], buffer_size: int) -> None:
    data = bytearray(UNCHECKED[name])
    for at, mask in changes:
        data[9 + at % (len(data) - 17)] ^= mask
    survive(bytes(data), buffer_size)


@settings(max_examples=150)
@given(st.binary(max_size=400), st.sampled_from([b"REDIS0012", b"VALKEY080"]), st.sampled_from([7, 1 << 20]))
def test_random_bytes_give_rows_or_the_error(body: bytes, magic: bytes, buffer_size: int) -> None:
    survive(magic + body + PAD, buffer_size)


@settings(max_examples=150)
@given(flips)
def test_both_ways_of_reading_agree_on_flipped_bytes(changes: list[tuple[int, int]]) -> None:
    """The fast loop takes nothing that the complete reader (which a small window forces) refuses, nor the reverse."""
    data = bytearray(UNCHECKED["redis"])
    for at, mask in changes:
        data[9 + at % (len(data) - 17)] ^= mask

    def outcome(buffer_size: int) -> object:
        try:
            return parse(bytes(data), buffer_size=buffer_size)
        except CorruptSourceError:
            return "corrupt"

    assert outcome(1 << 20) == outcome(30)


def test_flipped_bytes_never_take_much_memory() -> None:
    original = UNCHECKED["redis"]
    tracemalloc.start()
    try:
        for at in range(9, len(original) - 9, 13):
            data = bytearray(original)
            data[at] ^= 0xC3
            survive(bytes(data), 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
