"""RDB files with known content, written by a few lines of our own: what the checker compares with is this list."""

from __future__ import annotations

import random
from pathlib import Path

Row = tuple[int, str, str, int, int | None]
"""db, key (hex), type, member_count, expire_at (Unix ms)."""

_KINDS = {"string": 0, "list": 1, "set": 2}
"""Type -> type byte of its plain form: a string, or a count and that many strings."""


def write_rdb(path: Path, keys: int, rng: random.Random) -> list[Row]:
    """Write a file of RDB version 11 without a checksum; its rows."""
    data, rows, db = bytearray(b"REDIS0011"), list[Row](), -1
    for n in range(keys):
        if n * 3 // keys != db:
            db = n * 3 // keys
            data += bytes([0xFE, db])
        kind = rng.choice(list(_KINDS))
        members = 1 if kind == "string" else rng.randrange(1, 8)
        expire = rng.randrange(1_800_000_000_000, 1_900_000_000_000) if rng.random() < 0.3 else None
        key = f"{kind}:{n}:".encode() + rng.randbytes(rng.randrange(12))
        if expire is not None:
            data += b"\xfc" + expire.to_bytes(8, "little")
        data += bytes([_KINDS[kind]]) + _string(key)
        values = [b"%d" % m + rng.randbytes(4) for m in range(members)]
        if kind != "string":
            data += _length(members)
        data += b"".join(map(_string, values))
        rows.append((db, key.hex(), kind, members, expire))
    path.write_bytes(bytes(data) + b"\xff" + bytes(8))
    return rows


def _length(value: int) -> bytes:
    return bytes([value]) if value < 64 else bytes([0x40 | value >> 8, value & 0xFF])


def _string(value: bytes) -> bytes:
    return _length(len(value)) + value
