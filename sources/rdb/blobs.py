"""Number of elements of the packed encodings that an RDB file holds as one string each.

All of them begin with a header that tells the number; only when it says "unknown" are the elements walked over.
Every function raises ValueError when the bytes contradict themselves.
"""

from __future__ import annotations

import lzf

HEAD = 10
"""Bytes from a blob's start that tell its count, at most (ziplist)."""
UNKNOWN = -1

LISTPACK, ZIPLIST, INTSET, ZIPMAP = "listpack", "ziplist", "intset", "zipmap"

_MIN_BYTES = {LISTPACK: 7, ZIPLIST: 11, INTSET: 8, ZIPMAP: 2}
_LZF_MAX_EXPANSION = 264
"""LZF's longest back reference: 264 bytes of output, from 2 or 3 bytes of input."""


def header_count(kind: str, head: bytes, size: int) -> int:
    """Elements (fields and values each count) of a blob of `size` bytes beginning with `head`, or UNKNOWN."""
    if size < _MIN_BYTES[kind]:
        raise ValueError(f"{kind} of {size} bytes is too short")
    if kind == INTSET:
        width, count = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:8], "little")
        if width not in (2, 4, 8) or 8 + width * count != size:
            raise ValueError(f"intset of {size} bytes says it holds {count} integers of {width} bytes")
        return count
    if kind == ZIPMAP:
        return head[0] * 2 if head[0] < 254 else UNKNOWN
    if int.from_bytes(head[:4], "little") != size:
        raise ValueError(f"{kind} of {size} bytes says it has {int.from_bytes(head[:4], 'little')}")
    at = 4 if kind == LISTPACK else 8
    count = int.from_bytes(head[at : at + 2], "little")
    return count if count != 65535 else UNKNOWN


def walk(kind: str, blob: bytes) -> int:
    """Elements of a whole blob whose header does not tell, counted one by one."""
    try:
        if kind == LISTPACK:
            return _walk_listpack(blob)
        return _walk_ziplist(blob) if kind == ZIPLIST else _walk_zipmap(blob)
    except IndexError:
        raise ValueError(f"{kind} of {len(blob)} bytes runs past its end") from None


def _walk_listpack(blob: bytes) -> int:
    at, count = 6, 0
    while (first := blob[at]) != 0xFF:
        if first < 0x80:
            size = 1
        elif first < 0xC0:
            size = 1 + (first & 0x3F)
        elif first < 0xE0:
            size = 2
        elif first < 0xF0:
            size = 2 + ((first & 0x0F) << 8 | blob[at + 1])
        elif first == 0xF0:
            size = 5 + int.from_bytes(blob[at + 1 : at + 5], "little")
        elif first <= 0xF4:
            size = (3, 4, 5, 9)[first - 0xF1]
        else:
            raise ValueError(f"listpack has an unknown entry type {first:#04x}")
        # Behind the entry stands its size again, 7 bits a byte.
        at += size + sum(size >= limit for limit in (0, 1 << 7, 1 << 14, 1 << 21, 1 << 28))
        count += 1
    return count


_ZIPLIST_INTEGERS = {0xC0: 3, 0xD0: 5, 0xE0: 9, 0xF0: 4, 0xFE: 2} | dict.fromkeys(range(0xF1, 0xFE), 1)


def _walk_ziplist(blob: bytes) -> int:
    at, count = 10, 0
    while blob[at] != 0xFF:
        at += 5 if blob[at] == 0xFE else 1  # length of the entry before
        first = blob[at]
        if first < 0x40:
            at += 1 + first
        elif first < 0x80:
            at += 2 + ((first & 0x3F) << 8 | blob[at + 1])
        elif first < 0xC0:
            at += 5 + int.from_bytes(blob[at + 1 : at + 5], "big")
        elif first in _ZIPLIST_INTEGERS:
            at += _ZIPLIST_INTEGERS[first]
        else:
            raise ValueError(f"ziplist has an unknown entry type {first:#04x}")
        count += 1
    return count


def _walk_zipmap(blob: bytes) -> int:
    at, count = 1, 0
    while blob[at] != 0xFF:
        for unused_byte in (0, 1):  # a value has a byte that counts the unused bytes behind it
            size, at = blob[at], at + 1
            if size == 254:
                size, at = int.from_bytes(blob[at : at + 4], "little"), at + 4
            elif size == 255:
                raise ValueError("zipmap ends between a field and its value")
            at += size + (1 + blob[at] if unused_byte else 0)
        count += 2
    return count


def lzf_head(data: bytes, start: int, end: int, size: int) -> bytes:
    """The first `size` bytes (fewer if there are fewer) of what `data[start:end]`, LZF-compressed, stands for.

    Its first 2 * size + 2 bytes always suffice.
    """
    literal = data[start] + 1
    if size <= literal <= 32:  # nearly always: nothing can repeat yet
        return data[start + 1 : start + 1 + size]
    out = bytearray()
    while len(out) < size and start < end:
        control = data[start]
        start += 1
        if control < 32:
            out += data[start : start + control + 1]
            start += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += data[start]
            start += 1
        back = ((control & 0x1F) << 8 | data[start]) + 1
        start += 1
        if back > len(out):
            raise ValueError("LZF data refers to before its start")
        for _ in range(min(length + 2, size)):
            out.append(out[-back])
    return bytes(out[:size])


def lzf_check(compressed: int, size: int) -> None:
    """Refuse a claimed size that so few compressed bytes cannot give, before memory is taken for it."""
    if not 0 < size <= compressed * _LZF_MAX_EXPANSION:
        raise ValueError(f"{compressed} bytes of LZF cannot hold {size} bytes")


def lzf_expand(compressed: bytes, size: int) -> bytes:
    """The whole string behind `compressed`, which must be `size` bytes."""
    lzf_check(len(compressed), size)
    out: bytes | None = lzf.decompress(compressed, size)
    if out is None or len(out) != size:
        raise ValueError(f"LZF data does not give the {size} bytes it says")
    return out
