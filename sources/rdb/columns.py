"""From the notes of `scan` to Arrow: every column of a segment at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.records import ENCODINGS, WIRE, words
from sources.rdb.blobs import LISTPACK, ZIPLIST, walk
from sources.rdb.scan import PACKED, PAIRED, Segment
from sources.rdb.values import REDIS_VALUES, STRING_ENCODINGS

Int64s = npt.NDArray[np.int64]


def _table(values: dict[int, int], default: int = 0, size: int = 256) -> npt.NDArray[np.int8]:
    table = np.full(size, default, np.int8)
    for index, value in values.items():
        table[index] = value
    return table


# By type byte.
_TYPE = _table({code: value[0] for code, value in REDIS_VALUES.items()})
_ENCODING = _table({code: value[1] for code, value in REDIS_VALUES.items()})
_NODE_HEADER = _table({14: 1, 18: 2})  # node count; container
_IS_LISTPACK = _table({code: 1 for code, kind in PACKED.items() if kind == LISTPACK}).astype(bool)
_IS_ZIPLIST = _table({code: 1 for code, kind in PACKED.items() if kind == ZIPLIST}).astype(bool)
_IS_PAIRED = _table(dict.fromkeys(PAIRED, 1))
# By first byte of a string.
_STRING_ENCODING = _table(STRING_ENCODINGS, ENCODINGS.index("raw"))
_KEY_SIZE = np.array([*range(64), *[0] * 128, 1, 2, 4, *[0] * 61], np.int64)  # as stored, after the first byte
_VALUE_SIZE = _KEY_SIZE


class BadRowError(ValueError):
    """A value contradicts itself; `position` is that of its type byte in the segment's data."""

    def __init__(self, what: str, position: int) -> None:
        super().__init__(what)
        self.position = position


def to_batch(
    segment: Segment,
    codis_slot: Callable[[bytes], int] | None,
    redis_slot: Callable[[bytes], int] | None,
) -> pa.RecordBatch:
    """The rows of a segment as one record batch of WIRE. Raises BadRowError."""
    rows = len(segment.starts)
    starts = np.array(segment.starts, np.int64)
    data = np.frombuffer(segment.data, np.uint8)
    codes = data[starts]
    key_starts, key_sizes = _keys(data, starts)
    types, encodings, counts, sizes = _values(segment, data, starts, codes, key_starts + key_sizes)
    if segment.entries:
        types[segment.entry_rows] = [entry.type for entry in segment.entries]
        encodings[segment.entry_rows] = [entry.encoding for entry in segment.entries]
        counts[segment.entry_rows] = [entry.member_count for entry in segment.entries]
        sizes[segment.entry_rows] = [entry.rdb_size for entry in segment.entries]
    keys = _key_array(segment, key_starts, key_sizes)
    positions = np.array(segment.expire_positions, np.int64)[:, np.newaxis]
    expiries = data[positions + np.arange(8)].view("<i8").ravel()  # any 64-bit number is kept as it is (T35)
    columns = [
        pa.array(np.full(rows, segment.db, np.int64)),
        keys,
        pa.DictionaryArray.from_arrays(pa.array(types), words("type")),
        pa.array(counts),
        pa.array(sizes),
        pa.DictionaryArray.from_arrays(pa.array(encodings), words("encoding")),
        _sparse(segment, "expire_at_ms", segment.expire_rows, expiries),
        _sparse(segment, "idle_seconds", segment.idle_rows, segment.idle_seconds),
        _sparse(segment, "freq", segment.freq_rows, segment.freqs),
        _slots(keys, codis_slot),
        _slots(keys, redis_slot),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=WIRE)


def _keys(data: npt.NDArray[np.uint8], starts: Int64s) -> tuple[Int64s, Int64s]:
    """Where the keys begin and how many bytes they take."""
    first = data.take(starts + 1, mode="clip")
    key_starts, key_sizes = starts + 2, _KEY_SIZE[first]
    long = np.flatnonzero((first >= 64) & (first < 128))
    if len(long):
        key_sizes[long] = (first[long].astype(np.int64) & 63) << 8 | data[starts[long] + 2]
        key_starts[long] += 1
    return key_starts, key_sizes


def _values(
    segment: Segment, data: npt.NDArray[np.uint8], starts: Int64s, codes: npt.NDArray[np.uint8], values: Int64s
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8], Int64s, Int64s]:
    """Type, encoding, member_count and rdb_size; arbitrary for the segment's `entries`."""
    values = values + _NODE_HEADER[codes]
    first = data.take(values, mode="clip")
    sizes = _VALUE_SIZE[first]
    bodies = values + 1
    long = np.flatnonzero((first >= 64) & (first < 128))
    if len(long):
        sizes[long] = (first[long].astype(np.int64) & 63) << 8 | data.take(values[long] + 1, mode="clip")
        bodies[long] += 1

    types, encodings = _TYPE[codes], _ENCODING[codes]
    strings = codes == 0
    encodings[strings] = _STRING_ENCODING[first[strings]]
    counts = np.ones(len(starts), np.int64)

    packed = ~strings
    packed[segment.value_rows] = False
    packed[segment.entry_rows] = False
    rows = np.flatnonzero(packed)
    if len(rows):
        counts[rows] = _counts(segment.data, data, starts[rows], codes[rows], bodies[rows], sizes[rows])
    rdb_sizes = bodies + sizes - starts
    if segment.value_rows:
        counts[segment.value_rows] = segment.counts
        rdb_sizes[segment.value_rows] = segment.sizes
    return types, encodings, counts, rdb_sizes


def _counts(
    raw: bytes,
    data: npt.NDArray[np.uint8],
    starts: Int64s,
    codes: npt.NDArray[np.uint8],
    bodies: Int64s,
    sizes: Int64s,
) -> Int64s:
    """member_count of values that are one packed string each, from the headers at `bodies`."""
    listpacks, ziplists = _IS_LISTPACK[codes], _IS_ZIPLIST[codes]
    intsets = ~(listpacks | ziplists)
    head = data.take(bodies[:, np.newaxis] + np.arange(10), mode="clip")
    first_word, second_word = head[:, :8].copy().view("<u4").astype(np.int64).T
    ziplist_count = head[:, 8:].copy().view("<u2").ravel()
    counts = np.where(listpacks, second_word & 0xFFFF, np.where(ziplists, ziplist_count, second_word))
    stated = np.where(intsets, 8 + first_word * second_word, first_word)  # an intset begins with its integers' width
    good = (stated == sizes) & (sizes >= np.where(listpacks, 7, np.where(ziplists, 11, 8)))
    good &= ~intsets | (first_word == 2) | (first_word == 4) | (first_word == 8)
    for row in np.flatnonzero((counts == 65535) & ~intsets & good).tolist():  # more than the header can tell
        try:
            kind = LISTPACK if listpacks[row] else ZIPLIST
            counts[row] = walk(kind, raw[bodies[row] : bodies[row] + sizes[row]])
        except ValueError:
            good[row] = False
    paired = _IS_PAIRED[codes]
    good &= (counts & paired) == 0
    if not good.all():
        bad = int(np.argmin(good))
        raise BadRowError(f"the {PACKED[int(codes[bad])]} here contradicts itself", int(starts[bad]))
    return counts >> paired


def _key_array(segment: Segment, starts: Int64s, sizes: Int64s) -> pa.Array:
    """The keys, taken from the window by position; those that are not there as they are, from behind it."""
    data = segment.data
    if segment.keys:
        own = np.array([len(key) for key in segment.keys], np.int64)
        starts[segment.key_rows] = len(data) + np.cumsum(own) - own
        sizes[segment.key_rows] = own
        data = b"".join((data, *segment.keys))
    # A binary array that has every key at an even index and what lies between two keys at an odd one.
    offsets = np.empty(2 * len(starts) + 2, np.int32)
    offsets[0:-2:2] = starts
    offsets[1:-2:2] = starts + sizes
    offsets[-2:] = len(data)
    spread = pa.Array.from_buffers(pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    return spread.take(pa.array(np.arange(0, 2 * len(starts), 2)))


def _sparse(segment: Segment, name: str, some: list[int], values: Sequence[int] | Int64s) -> pa.Array:
    """A column of which `some` rows have values, and entries bring their own."""
    dtype, rows = WIRE.field(name).type, len(segment.starts)
    entries = zip(segment.entry_rows, segment.entries, strict=True)
    read = [(row, value) for row, entry in entries if (value := getattr(entry, name)) is not None]
    if not some and not read:
        return pa.nulls(rows, dtype)
    column, missing = np.zeros(rows, dtype.to_pandas_dtype()), np.ones(rows, bool)
    column[some] = values
    missing[some] = False
    for row, value in read:
        column[row] = value
        missing[row] = False
    return pa.array(column, dtype, mask=missing)


def _slots(keys: pa.Array, slot: Callable[[bytes], int] | None) -> pa.Array:
    if slot is None:
        return pa.nulls(len(keys), pa.int32())
    return pa.array([slot(key) for key in keys.to_pylist()], pa.int32())
