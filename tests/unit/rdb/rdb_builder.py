"""A small writer of RDB bytes, for what no server at hand writes any more ("built by hand")."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lzf

from sources.rdb import RdbReader
from sources.rdb.crc64 import crc64

FIXTURES = Path(__file__).parents[2] / "fixtures" / "rdb"


def length(value: int) -> bytes:
    if value < 1 << 6:
        return bytes([value])
    if value < 1 << 14:
        return bytes([0x40 | value >> 8, value & 0xFF])
    return b"\x80" + value.to_bytes(4, "big") if value < 1 << 32 else b"\x81" + value.to_bytes(8, "big")


def string(value: bytes) -> bytes:
    return length(len(value)) + value


def compressed(value: bytes) -> bytes:
    packed = lzf.compress(value)
    assert packed is not None
    return b"\xc3" + length(len(packed)) + length(len(value)) + packed


def literal_lzf(value: bytes, run: int = 1) -> bytes:
    """LZF that compresses nothing: literal runs of `run` bytes."""
    parts = [value[i : i + run] for i in range(0, len(value), run)]
    packed = b"".join(bytes([len(part) - 1]) + part for part in parts)
    return b"\xc3" + length(len(packed)) + length(len(value)) + packed


def listpack(elements: Iterable[bytes], count: int | None = None) -> bytes:
    """Elements of up to 63 bytes as they are; `count` overrides the header."""
    items = list(elements)
    body = b"".join(bytes([0x80 | len(e)]) + e + bytes([len(e) + 1]) for e in items)
    return struct.pack("<IH", len(body) + 7, len(items) if count is None else count) + body + b"\xff"


def ziplist(elements: Iterable[bytes], count: int | None = None) -> bytes:
    body, before, tail, items = b"", 0, 10, list(elements)
    for element in items:
        tail = 10 + len(body)
        entry = (bytes([before]) if before < 254 else b"\xfe" + struct.pack("<I", before)) + string(element)
        body, before = body + entry, len(entry)
    return struct.pack("<IIH", len(body) + 11, tail, len(items) if count is None else count) + body + b"\xff"


def zipmap(pairs: dict[bytes, bytes], count: int | None = None) -> bytes:
    def size(n: int) -> bytes:
        return bytes([n]) if n < 254 else b"\xfe" + struct.pack("<I", n)

    body = b"".join(size(len(k)) + k + size(len(v)) + b"\x02" + v + b"??" for k, v in pairs.items())
    return bytes([min(254, len(pairs)) if count is None else count]) + body + b"\xff"


def intset(values: list[int], width: int = 2) -> bytes:
    return struct.pack("<II", width, len(values)) + b"".join(v.to_bytes(width, "little", signed=True) for v in values)


def file(*parts: bytes, magic: bytes = b"REDIS0012", checksum: bool = True) -> bytes:
    """A whole file of these entries and opcodes."""
    data = magic + b"".join(parts) + b"\xff"
    if magic in (b"REDIS0001", b"REDIS0002", b"REDIS0003", b"REDIS0004"):
        return data
    return data + (crc64(data) if checksum else 0).to_bytes(8, "little")


def entry(code: int, key: bytes, value: bytes) -> bytes:
    return bytes([code]) + string(key) + value


def parse(data: bytes, **options: Any) -> list[dict[str, Any]]:
    """Rows of an RDB file in memory."""
    return [row for batch in RdbReader(io.BytesIO(data), name="test.rdb", **options) for row in batch.to_pylist()]


def stream(version: int) -> bytes:
    """Value of a stream of 3 entries with a group, two pending entries and a consumer."""
    nodes = length(1) + string(bytes(16)) + string(listpack([b"a"] * 9))
    ids = (5, 1) if version == 1 else (5, 1, 3, 0, 4, 7, 2**40)
    numbers = length(3) + b"".join(map(length, ids))
    group = string(b"group") + b"".join(map(length, (5, 1) if version == 1 else (5, 1, 2**64 - 1)))
    pending = length(2) + (bytes(16) + bytes(8) + length(1)) * 2
    consumer = string(b"consumer") + bytes(8 if version < 3 else 16) + length(2) + bytes(32)
    return nodes + numbers + length(1) + group + pending + length(1) + consumer


PAIRS = {b"field": b"value", b"f2": b"v2", b"f3": b"v3"}
FLAT = [x for pair in PAIRS.items() for x in pair]
TTL = struct.pack("<q", 4_102_444_800_123)
MODULE = (
    length(2**63 + 5)
    + b"".join((length(1), length(2**64 - 1), length(2), length(7), length(3), bytes(4), length(4), bytes(8)))
    + b"".join((length(5), string(b"text"), length(5), compressed(b"x" * 100), length(0)))
)
_METADATA = b"".join(
    length(ttl) + string(k) + string(v) for ttl, (k, v) in zip((0, 1, 70_000), PAIRS.items(), strict=True)
)

COMMON: list[tuple[str, int, bytes, tuple[str, str, int]]] = [
    ("raw string", 0, string(b"value"), ("string", "raw", 1)),
    ("string of 20000 bytes", 0, string(b"v" * 20_000), ("string", "raw", 1)),
    ("string with 64-bit length", 0, b"\x81" + (5).to_bytes(8, "big") + b"value", ("string", "raw", 1)),
    ("int8 string", 0, b"\xc0\x85", ("string", "int", 1)),
    ("int16 string", 0, b"\xc1\x85\x00", ("string", "int", 1)),
    ("int32 string", 0, b"\xc2\x85\x00\x00\x00", ("string", "int", 1)),
    ("LZF string", 0, compressed(b"v" * 100), ("string", "lzf", 1)),
    ("list", 1, length(3) + string(b"a") + b"\xc0\x07" + compressed(b"a" * 50), ("list", "list", 3)),
    ("set", 2, length(70) + string(b"abc") * 70, ("set", "raw", 70)),
    (
        "zset v1",
        3,
        length(4)
        + string(b"a")
        + b"\x031.5"
        + string(b"b")
        + b"\xfd"
        + string(b"c")
        + b"\xfe"
        + string(b"d")
        + b"\xff",
        ("zset", "skip_list", 4),
    ),
    ("hash", 4, length(2) + string(b"f") + string(b"v" * 100) + b"\xc0\x07" + b"\xc1\x07\x07", ("hash", "raw", 2)),
    ("zset v2", 5, length(2) + (string(b"m") + bytes(8)) * 2, ("zset", "skip_list", 2)),
    ("module", 7, MODULE, ("module", "module", 0)),
    ("zipmap", 9, string(zipmap(PAIRS)), ("hash", "zip_map", 3)),
    ("zipmap with long value", 9, string(zipmap({b"f": b"v" * 300})), ("hash", "zip_map", 1)),
    ("zipmap of 260 pairs", 9, string(zipmap({b"%d" % i: b"v" for i in range(260)})), ("hash", "zip_map", 260)),
    ("ziplist list", 10, string(ziplist([b"a", b"b" * 300, b"c"])), ("list", "zip_list", 3)),
    ("intset 2", 11, string(intset([1, -2, 3])), ("set", "int_set", 3)),
    ("intset 4", 11, string(intset([1, -2, 3], 4)), ("set", "int_set", 3)),
    ("intset 8", 11, string(intset([1, -2, 3], 8)), ("set", "int_set", 3)),
    ("intset of 70000", 11, string(intset(list(range(70_000)), 4)), ("set", "int_set", 70_000)),
    ("ziplist zset", 12, string(ziplist([b"a", b"1", b"b", b"2"])), ("zset", "zip_list", 2)),
    ("ziplist hash", 13, string(ziplist(FLAT)), ("hash", "zip_list", 3)),
    ("LZF ziplist hash", 13, compressed(ziplist(FLAT * 20)), ("hash", "zip_list", 60)),
    ("quicklist v1 of one node", 14, length(1) + string(ziplist([b"a", b"b"])), ("list", "quick_list", 2)),
    (
        "quicklist v1 of three nodes",
        14,
        length(3) + string(ziplist([b"a", b"b"])) + compressed(ziplist([b"a" * 9] * 70)) + string(ziplist([b"z"])),
        ("list", "quick_list", 73),
    ),
    ("stream v1", 15, stream(1), ("stream", "list_packs", 3)),
    ("listpack hash", 16, string(listpack(FLAT)), ("hash", "list_pack", 3)),
    ("LZF listpack hash", 16, compressed(listpack(FLAT * 20)), ("hash", "list_pack", 60)),
    ("LZF of single literals", 16, literal_lzf(listpack(FLAT * 2)), ("hash", "list_pack", 6)),
    ("LZF of four literals", 13, literal_lzf(ziplist(FLAT * 2), 4), ("hash", "zip_list", 6)),
    ("listpack hash of 300", 16, string(listpack(FLAT * 100)), ("hash", "list_pack", 300)),
    ("listpack zset", 17, string(listpack([b"a", b"1"])), ("zset", "list_pack", 1)),
    (
        "quicklist v2 of one node",
        18,
        length(1) + length(2) + string(listpack([b"a", b"b"])),
        ("list", "quick_list2", 2),
    ),
    (
        "quicklist v2 with plain nodes",
        18,
        length(3)
        + length(1)
        + string(b"p" * 90)
        + length(2)
        + string(listpack([b"a", b"b"]))
        + length(1)
        + b"\xc0\x01",
        ("list", "quick_list2", 4),
    ),
    ("stream v2", 19, stream(2), ("stream", "list_packs2", 3)),
    ("listpack set", 20, string(listpack([b"a", b"b", b"c"])), ("set", "list_pack", 3)),
    ("stream v3", 21, stream(3), ("stream", "list_packs3", 3)),
]
REDIS_ONLY = [
    ("hash metadata before 7.4", 22, length(3) + _METADATA, ("hash", "metadata", 3)),
    ("listpack ex before 7.4", 23, string(listpack([b"f", b"v", b"0"] * 3)), ("hash", "list_pack_ex", 3)),
    ("hash metadata", 24, TTL + length(3) + _METADATA, ("hash", "metadata", 3)),
    ("listpack ex", 25, TTL + string(listpack([b"f", b"v", b"0"] * 3)), ("hash", "list_pack_ex", 3)),
    ("LZF listpack ex", 25, TTL + compressed(listpack([b"f", b"v", b"0"] * 30)), ("hash", "list_pack_ex", 30)),
]
VALKEY_ONLY = [
    (
        "hash with expiring fields",
        22,
        length(2) + string(b"f") + string(b"v") + TTL + string(b"g") + compressed(b"v" * 50) + b"\xff" * 8,
        ("hash", "metadata", 2),
    ),
]

OPCODES = [
    ("AUX", b"\xfa" + string(b"redis-ver") + string(b"8.2.3")),
    ("AUX with integer", b"\xfa" + string(b"ctime") + b"\xc2\x00\x00\x00\x60"),
    ("RESIZEDB", b"\xfb" + length(100_000) + length(3)),
    ("SLOT_INFO", b"\xf4" + length(16_383) + length(10) + length(0)),
    ("FUNCTION2", b"\xf5" + string(b"#!lua name=mylib\n" + b"code" * 30)),
    ("FUNCTION before 7.0, no description", b"\xf6" + string(b"lib") + string(b"LUA") + length(0) + string(b"code")),
    ("FUNCTION before 7.0", b"\xf6" + string(b"lib") + string(b"LUA") + length(1) + string(b"says") + string(b"code")),
    ("MODULE_AUX", b"\xf7" + length(2**63 + 5) + length(2) + length(1) + length(5) + string(b"x") + length(0)),
    ("SLOT_IMPORT", b"\xf3" + string(b"j" * 40) + length(2) + b"".join(map(length, (0, 100, 200, 16_383)))),
]


def everything(magic: bytes = b"REDIS0012", *, checksum: bool = True, limit: int = 1000) -> bytes:
    """A file with every opcode, and with every type in values of up to `limit` bytes, with and without attributes."""
    values = COMMON + (VALKEY_ONLY if magic.startswith(b"VALKEY") else REDIS_ONLY)
    parts = [opcode for _, opcode in OPCODES]
    parts += [entry(code, name.encode(), value) for name, code, value, _ in values if len(value) <= limit]
    parts += [b"\xfe" + length(300), b"\xfc" + TTL + entry(0, b"expires", string(b"v"))]
    parts += [b"\xfd" + struct.pack("<i", 2**31 - 1) + b"\xf8" + length(16_000) + entry(0, b"idle", string(b"v"))]
    parts += [b"\xf9\xff" + b"\x00\xc1\x39\x30" + string(b"integer key")]
    parts += [b"\x00" + compressed(b"k" * 100) + string(b"compressed key"), entry(0, b"k" * 100, string(b"long key"))]
    return file(*parts, magic=magic, checksum=checksum)
