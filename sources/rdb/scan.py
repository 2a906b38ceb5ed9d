"""The hot loop: finds where the common shapes of keys begin and end in a window, and leaves the rest to numpy.

A Python loop that builds every column of a row costs several microseconds a key. So the loop only hops from key to key
and notes where each one begins; `columns` derives type, sizes, counts and keys from the notes for all rows at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sources.rdb.blobs import HEAD, INTSET, LISTPACK, UNKNOWN, ZIPLIST, header_count, lzf_check, lzf_head
from sources.rdb.entry import EXPIRETIME_MS, FREQ, IDLE, Entry

MARGIN = 128
"""Bytes that the loop may look ahead from a key's beginning, before it knows the value's length."""

_BLOCK = 512
"""Rows between two looks at the limits."""

# By first byte: bytes of the length byte(s) and what follows, 0 when the byte alone does not tell.
_KEY_ADVANCE = [2 + b for b in range(64)] + [0] * 192  # from the type byte to the value
_VALUE_ADVANCE = [1 + b for b in range(64)] + [0] * 128 + [2, 3, 5] + [0] * 61  # 0xC0..0xC2: integers
_INTEGER_SIZE = {0xC0: 1, 0xC1: 2, 0xC2: 4}

PACKED = {11: INTSET, 12: ZIPLIST, 13: ZIPLIST, 14: ZIPLIST, 16: LISTPACK, 17: LISTPACK, 18: LISTPACK, 20: LISTPACK}
"""Type bytes whose value is one packed string (lists, 14 and 18: if they have one node)."""
PAIRED = frozenset((12, 13, 16, 17))
"""Those where two elements make a member."""
_COMMON = [code == 0 or code in PACKED for code in range(256)]


@dataclass(slots=True)
class Segment:
    """Notes on consecutive rows of one window and one database. Positions are indices in `data`."""

    data: bytes
    db: int
    starts: list[int] = field(default_factory=list)
    """Position of each row's type byte; what follows overrides what is found there, by row number."""
    expire_rows: list[int] = field(default_factory=list)
    expire_positions: list[int] = field(default_factory=list)
    idle_rows: list[int] = field(default_factory=list)
    idle_seconds: list[int] = field(default_factory=list)
    freq_rows: list[int] = field(default_factory=list)
    freqs: list[int] = field(default_factory=list)
    key_rows: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    """Keys that are not in the window as they are: integers, compressed ones."""
    value_rows: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    entry_rows: list[int] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    """Rows read in full by `read_entry`."""

    extra_bytes: int = 0
    """Key bytes beyond 63 a row."""

    def add(self, entry: Entry, key: bytes) -> None:
        """Append a row that was read in full."""
        row = len(self.starts)
        self.entry_rows.append(row)
        self.entries.append(entry)
        self.key_rows.append(row)
        self.keys.append(key)
        self.starts.append(0)
        self.extra_bytes += max(0, len(key) - 63)

    def has_room(self, size: int, key_bytes: int) -> bool:
        """Whether a key of `size` bytes may follow, so that all surely stay within `key_bytes`."""
        return (len(self.starts) + 1) * 63 + self.extra_bytes + max(0, size - 63) <= key_bytes


def scan(segment: Segment, pos: int, rows: int, key_bytes: int) -> int:
    """Add keys of common shapes from `pos` on, while there are any. Returns the position behind the last one.

    `rows` and `key_bytes` limit the whole segment; a key of up to 63 bytes counts as 63.
    """
    data = segment.data
    end = len(data)
    limit = end - MARGIN
    starts = segment.starts
    add = starts.append
    key_advance, value_advance, common = _KEY_ADVANCE, _VALUE_ADVANCE, _COMMON
    while True:
        # Longer keys must leave room for the rest of a block, so blocks become small towards the end.
        room = (key_bytes - segment.extra_bytes) // 63 - len(starts)
        block = min(rows - len(starts), _BLOCK, room if room < 2 else room // 2)
        if block <= 0:
            break
        planned = len(starts) + block
        for _ in range(block):
            if pos >= limit:
                break
            start = pos
            code = data[start]
            if code > 247:  # what precedes a type byte: expiry, then idle time or frequency
                if code == EXPIRETIME_MS:
                    segment.expire_rows.append(len(starts))
                    segment.expire_positions.append(start + 1)
                    start += 9
                    code = data[start]
                if code == FREQ:
                    segment.freq_rows.append(len(starts))
                    segment.freqs.append(data[start + 1])
                    start += 2
                    code = data[start]
                elif code == IDLE:
                    idle = data[start + 1]
                    if idle < 64:
                        start += 2
                    elif idle < 128:
                        idle = (idle & 63) << 8 | data[start + 2]
                        start += 3
                    elif idle == 128:
                        idle = int.from_bytes(data[start + 2 : start + 6], "big")
                        start += 6
                    else:
                        break
                    segment.idle_rows.append(len(starts))
                    segment.idle_seconds.append(idle)
                    code = data[start]
            if not common[code]:
                break
            value = key_advance[data[start + 1]]
            if value:
                value += start
            else:
                first = data[start + 1]
                if first < 128:
                    size = (first & 63) << 8 | data[start + 2]
                    value = start + 3 + size
                    extra = segment.extra_bytes + max(0, size - 63)
                    if value >= limit or planned * 63 + extra > key_bytes:
                        break
                    segment.extra_bytes = extra
                elif first in _INTEGER_SIZE:
                    value = start + 2 + _INTEGER_SIZE[first]
                    segment.key_rows.append(len(starts))
                    segment.keys.append(b"%d" % int.from_bytes(data[start + 2 : value], "little", signed=True))
                else:
                    break
            if code == 18:
                if data[value] != 1 or data[value + 1] != 2:  # one node, a listpack
                    break
                value += 2
            elif code == 14:
                if data[value] != 1:
                    break
                value += 1
            first = data[value]
            after = value_advance[first]
            if after:
                after += value
            elif first < 128:
                after = value + 2 + ((first & 63) << 8 | data[value + 1])
            elif first == 0xC3:
                after = _lzf(segment, code, start, value + 1)
                if not after:
                    break
            else:
                break
            if after > end:
                break
            add(start)
            pos = after
        else:
            continue
        break
    _drop_unfinished(segment)
    return pos


def _lzf(segment: Segment, code: int, start: int, pos: int) -> int:
    """Note a row whose value is LZF-compressed. Returns the position behind it, 0 if this is no common shape."""
    data = segment.data
    numbers = []
    for _ in range(2):  # compressed size, size
        first = data[pos]
        if first < 64:
            numbers.append(first)
            pos += 1
        elif first < 128:
            numbers.append((first & 63) << 8 | data[pos + 1])
            pos += 2
        else:
            return 0
    compressed, size = numbers
    after = pos + compressed
    if after > len(data):
        return 0
    count = 1
    if code:
        try:
            lzf_check(compressed, size)
            head = lzf_head(data, pos, after, HEAD if PACKED[code] == ZIPLIST else 8)
            count = header_count(PACKED[code], head, size)
        except (ValueError, IndexError):
            return 0  # read_entry finds it again and tells what is wrong
        if count == UNKNOWN or (code in PAIRED and count % 2):
            return 0
        count >>= code in PAIRED
    segment.value_rows.append(len(segment.starts))
    segment.counts.append(count)
    segment.sizes.append(after - start)
    return after


def _drop_unfinished(segment: Segment) -> None:
    """Forget notes on the row that turned out not to be of a common shape, or not to be whole."""
    row = len(segment.starts)
    for rows, notes in (
        (segment.expire_rows, segment.expire_positions),
        (segment.idle_rows, segment.idle_seconds),
        (segment.freq_rows, segment.freqs),
        (segment.key_rows, segment.keys),
    ):
        if rows and rows[-1] == row:
            rows.pop()
            notes.pop()
