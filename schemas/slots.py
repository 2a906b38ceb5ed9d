"""Redis Cluster slots of whole columns of keys: CRC-16/XMODEM, hash tags by Redis' own rule (facts 2.1, defect 1)."""

from __future__ import annotations

from binascii import crc_hqx

import numpy as np
import numpy.typing as npt
import pyarrow as pa

REDIS_SLOTS, CODIS_SLOTS = 16_384, 1_024

_Ints = npt.NDArray[np.int64]
_TABLE = np.array([crc_hqx(bytes([i]), 0) for i in range(256)], np.uint16)
_LONG = 64
"""Bytes up to which keys go through numpy a byte of all keys at a time; the few longer ones go one by one."""


def redis_slots(keys: pa.Array) -> npt.NDArray[np.uint16]:
    """The slot of each key of a binary array without nulls.

    The bytes between the first `{` and the first `}` behind it count, if there are any; else the whole key.
    """
    data, starts, ends = _parts(keys)
    opened, closed = (np.append(np.flatnonzero(data == ord(c)), len(data)) for c in "{}")
    left = opened[np.searchsorted(opened, starts)]
    right = closed[np.searchsorted(closed, np.minimum(left + 1, len(data)))]
    tagged = (right < ends) & (right > left + 1)
    return _crc16(data, np.where(tagged, left + 1, starts), np.where(tagged, right, ends)) % REDIS_SLOTS


def crc16(keys: pa.Array) -> npt.NDArray[np.uint16]:
    """CRC-16/XMODEM of each whole key of a binary array without nulls."""
    return _crc16(*_parts(keys))


def _parts(keys: pa.Array) -> tuple[npt.NDArray[np.uint8], _Ints, _Ints]:
    """The bytes of all keys, and where each one begins and ends in them."""
    _, offsets, data = keys.buffers()
    bounds = np.frombuffer(offsets, np.int32)[keys.offset : keys.offset + len(keys) + 1].astype(np.int64)
    if not len(bounds):
        bounds = np.zeros(1, np.int64)
    return np.frombuffer(data or b"", np.uint8), bounds[:-1], bounds[1:]


def _crc16(data: npt.NDArray[np.uint8], starts: _Ints, ends: _Ints) -> npt.NDArray[np.uint16]:
    lengths = ends - starts
    order = np.argsort(-lengths, kind="stable")
    sorted_lengths = lengths[order]
    crc = np.zeros(len(order), np.uint16)
    first = int(np.searchsorted(-sorted_lengths, -_LONG))  # from here on they are short
    if first:
        memory = data.data
        for i in range(first):
            at = order[i]
            crc[i] = crc_hqx(memory[starts[at] : ends[at]], 0)
    begin = starts[order]
    for j in range(int(sorted_lengths[first]) if first < len(order) else 0):
        last = int(np.searchsorted(-sorted_lengths, -j))  # those longer than j
        now = crc[first:last]
        crc[first:last] = (now << 8) ^ _TABLE[(now >> 8) ^ data[begin[first:last] + j]]
    result = np.empty_like(crc)
    result[order] = crc
    return result
