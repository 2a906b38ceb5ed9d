"""Slots of keys, as Redis Cluster and Codis compute them."""

from __future__ import annotations

import zlib

from fastcrc import crc16

REDIS_SLOTS = 16384
CODIS_SLOTS = 1024


def redis_slot(key: bytes) -> int:
    """Redis Cluster slot, 0..16383: CRC16/XMODEM of the hash tag or the whole key.

    The hash tag is what stands between the first `{` and the first `}` after it, if that is not empty (cluster
    specification); otherwise the whole key counts.
    """
    begin = key.find(b"{")
    if begin >= 0:
        end = key.find(b"}", begin + 1)
        if end > begin + 1:
            key = key[begin + 1 : end]
    return int(crc16.xmodem(key)) % REDIS_SLOTS


def codis_slot(key: bytes) -> int:
    """Codis slot, 0..1023: CRC32/IEEE of the hash tag or the whole key.

    Codis takes an empty tag `{}` as the tag, where Redis Cluster takes the whole key (Codis 3, proxy, `hashSlot`).
    """
    begin = key.find(b"{")
    if begin >= 0:
        end = key.find(b"}", begin + 1)
        if end >= 0:
            key = key[begin + 1 : end]
    return zlib.crc32(key) % CODIS_SLOTS
