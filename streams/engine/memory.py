"""How a worker's memory is allocated."""

from __future__ import annotations

import ctypes
import os

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
KEPT = 128 << 20
"""Freed bytes that stay with the process; about one round of fetch answers, decoded chunks and Parquet pages."""
LARGEST = 32 << 20
"""Blocks from this size on are mapped each on its own; fetch answers (16 MiB) are below it."""


def keep_freed_memory() -> None:
    """Use freed memory again instead of giving it back to the kernel and getting it anew, page by page and cleared.

    That was a quarter of the CPU time of Arrow payloads. Arrow allocates from the same heap (`streams/__init__.py`),
    which takes 80 MiB less than a heap of its own. Does nothing where the environment says how to allocate, or where
    libc is not glibc.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP, LARGEST)
        mallopt(_TRIM, KEPT)
