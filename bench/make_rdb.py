"""Writes large valid RDB files of mixed small keys, for benchmarks and load tests: millions of keys in seconds.

python bench/make_rdb.py PATH KEYS [SEED]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sources.rdb.crc64 import crc64

_CHUNK = 100_000
_DIGITS = 10
_STEP = 7_368_787_009  # coprime to 10**10: i * _STEP visits every id once, in no visible order
_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", np.uint8)


def _length(size: int) -> bytes:
    return bytes([size]) if size < 64 else bytes([0x40 | size >> 8, size & 0xFF])


def _string(value: bytes) -> bytes:
    return _length(len(value)) + value


def _listpack(*elements: bytes) -> bytes:
    body = b"".join(bytes([0x80 | len(e)]) + e + bytes([len(e) + 1]) for e in elements)
    return (len(body) + 7).to_bytes(4, "little") + len(elements).to_bytes(2, "little") + body + b"\xff"


def _intset(count: int) -> bytes:
    values = b"".join((1000 + 7 * i).to_bytes(2, "little") for i in range(count))
    return (2).to_bytes(4, "little") + count.to_bytes(4, "little") + values


_ID = b"#" * _DIGITS
"""Where a template gets the key's id; `?` becomes a random letter."""


def _templates() -> list[tuple[float, bytes]]:
    """(share, bytes of one key) of everything in the mix: 50 % strings, 20 % of all keys with an expiry."""
    session, user, cache, item = b"session:" + _ID, b"user:" + _ID + b":profile", b"cache:page:" + _ID, b"item:" + _ID
    plain = [
        (0.15, b"\x00" + _string(session) + _string(b"?" * 44)),
        (0.15, b"\x00" + _string(cache) + _string(b"?" * 46)),
        (0.10, b"\x00" + _string(b"counter:" + _ID) + b"\xc1\x39\x30"),
        (0.05, b"\x00" + _string(b"flag:" + _ID) + _string(b"on")),
        (0.05, b"\x00" + _string(b"doc:" + _ID) + _string(b"?" * 90)),
        (0.12, b"\x10" + _string(user) + _string(_listpack(b"name", b"?" * 8, b"mail", b"?" * 26))),
        (0.08, b"\x10" + _string(item) + _string(_listpack(b"a", b"??", b"b", b"???", b"c", b"????", b"d", b"?"))),
        (0.10, b"\x12" + _string(b"queue:" + _ID) + b"\x01\x02" + _string(_listpack(b"????????", b"??????"))),
        (0.05, b"\x0b" + _string(b"friends:" + _ID) + _string(_intset(8))),
        (0.05, b"\x14" + _string(b"tags:" + _ID) + _string(_listpack(b"?????", b"???????", b"????"))),
        (0.10, b"\x11" + _string(b"board:" + _ID) + _string(_listpack(b"?????", b"1", b"??????", b"2.5"))),
    ]
    expiry = b"\xfc" + (1_893_456_000_000).to_bytes(8, "little")
    return [(0.8 * share, one) for share, one in plain] + [(0.2 * share, expiry + one) for share, one in plain]


def _chunk(ids: npt.NDArray[np.int64], rng: np.random.Generator) -> bytes:
    templates = _templates()
    shares = np.array([share for share, _ in templates])
    kinds = rng.choice(len(templates), len(ids), p=shares / shares.sum())
    powers = 10 ** np.arange(_DIGITS - 1, -1, -1)
    rows: list[bytes] = [b""] * len(ids)
    for kind, (_, template) in enumerate(templates):
        places = np.flatnonzero(kinds == kind)
        if not len(places):
            continue
        block = np.tile(np.frombuffer(template, np.uint8), (len(places), 1))
        at = template.index(_ID)
        block[:, at : at + _DIGITS] = ids[places][:, np.newaxis] // powers % 10 + ord("0")
        letters = np.flatnonzero(block[0] == ord("?"))
        block[:, letters] = _LETTERS[rng.integers(0, 64, (len(places), len(letters)), np.uint8)]
        flat, size = block.tobytes(), len(template)
        for i, place in enumerate(places.tolist()):
            rows[place] = flat[i * size : (i + 1) * size]
    return b"".join(rows)


def _parts(keys: int, seed: int, version: int, dbs: int) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    yield b"REDIS%04d" % version + b"\xfa" + _string(b"redis-ver") + _string(b"7.2.4")
    offset = int(rng.integers(0, 10**_DIGITS))
    for db in range(dbs):
        first, last = keys * db // dbs, keys * (db + 1) // dbs
        yield b"\xfe" + _length(db) + b"\xfb\x80" + (last - first).to_bytes(4, "big") + b"\x00"
        for start in range(first, last, _CHUNK):
            numbers = np.arange(start, min(last, start + _CHUNK), dtype=np.int64)
            yield _chunk((numbers * _STEP + offset) % 10**_DIGITS, rng)
    yield b"\xff"


def write_mixed(path: str | Path, keys: int, seed: int = 1, *, version: int = 11, dbs: int = 1) -> int:
    """Write an RDB file with `keys` distinct keys (about 62 bytes each) in no order. Returns its size in bytes."""
    crc = size = 0
    with Path(path).open("wb") as file:
        for part in _parts(keys, seed, version, dbs):
            file.write(part)
            crc = crc64(part, crc)
            size += len(part)
        file.write(crc.to_bytes(8, "little"))
    return size + 8


if __name__ == "__main__":
    began = time.perf_counter()
    count = int(sys.argv[2])
    total = write_mixed(sys.argv[1], count, int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    print(f"{count} keys, {total / count:.1f} bytes a key, {time.perf_counter() - began:.1f} s")
