"""CRC-64/REDIS (Jones polynomial, reflected, initial value 0), vectorised.

No library at hand has this variant, and a loop over bytes in Python would cost more than the whole parsing. A CRC is
linear, so two neighbouring ranges merge as `advance(left, len(right)) ^ right`: neighbouring 8-byte words are merged
pairwise, level by level, each level one set of table look-ups over a numpy array (about 1 ns a byte).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_POLYNOMIAL = 0x95AC9329AC4BC9B5  # 0xAD93D23594C935A9 with its bits reversed
_BLOCK = 1 << 20
"""Bytes folded at once, which bounds the memory for temporaries."""
_FEW = 64
"""So many words are merged one after the other: numpy's cost per call would exceed the work."""


def _byte_table() -> list[int]:
    table = []
    for value in range(256):
        crc = value
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _byte_table()


def _bytewise(data: bytes | memoryview, crc: int) -> int:
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


@lru_cache
def _tables(level: int) -> Words:
    """Look-up tables, `(8, 256)`: what byte j of a register becomes after `8 << level` zero bytes."""
    if level == 0:
        bits: Words = np.array([_bytewise(bytes(8), 1 << i) for i in range(64)], np.uint64)
    else:
        bits = _advance(_advance(np.left_shift(np.uint64(1), np.arange(64, dtype=np.uint64)), level - 1), level - 1)
    tables = np.zeros((8, 256), np.uint64)
    values = np.arange(256)
    for i in range(64):
        tables[i // 8] ^= np.where(values >> (i % 8) & 1, bits[i], np.uint64(0))
    return tables


def _advance(registers: Words, level: int) -> Words:
    """The registers after `8 << level` zero bytes each."""
    tables = _tables(level)
    columns = registers.view(np.uint8)
    out: Words = tables[0].take(columns[0::8].astype(np.intp))
    for j in range(1, 8):
        out ^= tables[j].take(columns[j::8].astype(np.intp))
    return out


@lru_cache
def _lists(level: int) -> list[list[int]]:
    """The same look-up tables as lists, which are faster for single registers."""
    lists: list[list[int]] = _tables(level).tolist()
    return lists


def _advance_one(register: int, level: int) -> int:
    a, b, c, d, e, f, g, h = _lists(level)
    return (
        a[register & 0xFF]
        ^ b[register >> 8 & 0xFF]
        ^ c[register >> 16 & 0xFF]
        ^ d[register >> 24 & 0xFF]
        ^ e[register >> 32 & 0xFF]
        ^ f[register >> 40 & 0xFF]
        ^ g[register >> 48 & 0xFF]
        ^ h[register >> 56]
    )


def crc64(data: bytes | memoryview, crc: int = 0) -> int:
    """CRC of `data`, continuing from `crc`, the CRC of the bytes before it."""
    view = memoryview(data)
    for start in range(0, len(view), _BLOCK):
        crc = _fold(view[start : start + _BLOCK], crc)
    return crc


def _fold(data: memoryview, crc: int) -> int:
    size = len(data)
    if size < 64:
        return _bytewise(data, crc)
    padding = -size % 8  # zero bytes in front leave a zero register as it is
    raw: npt.NDArray[Any] = np.zeros(size + padding, np.uint8)
    raw[padding:] = np.frombuffer(data, np.uint8)
    raw[padding : padding + 8] ^= np.frombuffer(crc.to_bytes(8, "little"), np.uint8)
    words: Words = raw.view("<u8")
    level = 0
    while len(words) > _FEW:
        if len(words) % 2:
            words = np.concatenate((np.zeros(1, np.uint64), words))
        words = _advance(np.ascontiguousarray(words[0::2]), level) ^ words[1::2]
        level += 1
    crc = 0
    for word in words.tolist():
        crc = _advance_one(crc, level) ^ word
    return _advance_one(crc, 0)
