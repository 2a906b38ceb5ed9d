"""Reads Parquet files as they appear, and takes for each record how long ago it was produced.

inotify tells of a file's name; the time is taken after its rows have been read, so the reader's own work counts.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

IN_CREATE, IN_MOVED_TO = 0x100, 0x80
WARM_UP_SECONDS = 2.0
"""Records produced in the first seconds are verified, and not counted."""
PERCENTILES = (50, 90, 99, 99.9, 100)


def appearing(directories: list[Path]) -> Iterator[Path]:
    """Paths as they get their names, for ever."""
    libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    fd = libc.inotify_init1(os.O_CLOEXEC)
    watched = {}
    for directory in directories:
        number = libc.inotify_add_watch(fd, os.fsencode(directory), IN_CREATE | IN_MOVED_TO)
        if number < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch", str(directory))
        watched[number] = directory
    while True:
        events, at = os.read(fd, 1 << 16), 0
        while at < len(events):
            number, _mask, _cookie, length = struct.unpack_from("iIII", events, at)
            name = events[at + 16 : at + 16 + length].rstrip(b"\0")
            at += 16 + length
            yield watched[number] / os.fsdecode(name)


def main() -> None:
    """Until all records were seen once; then the percentiles, in milliseconds, into BENCH_SEEN."""
    total, root = int(os.environ["BENCH_RECORDS"]), Path(os.environ["BENCH_SINK"], os.environ["BENCH_TOPIC"])
    produced: list[Any] = []
    waits: list[Any] = []
    rows = 0
    for path in appearing(sorted(root.iterdir())):
        if path.suffix != ".parquet" or path.name.startswith("."):
            continue
        times = pq.ParquetFile(path).read(["ts", "_offset"])["ts"].to_numpy()
        now = time.monotonic_ns()
        produced.append(times)
        waits.append(now - times)
        rows += len(times)
        if rows >= total:
            break
    made = np.concatenate(produced)
    found = np.concatenate(waits)[made >= made.min() + WARM_UP_SECONDS * 1e9] / 1e6
    seen = {f"p{q:g}_ms": round(float(np.percentile(found, q)), 1) for q in PERCENTILES}
    seconds = (made.max() - made.min()) / 1e9
    curve = [round(float(np.percentile(found, q)), 1) for q in np.arange(0, 100.01, 0.5)]
    out = Path(os.environ["BENCH_SEEN"])
    out.write_text(json.dumps({**seen, "pace": round(rows / seconds), "curve": curve}))


if __name__ == "__main__":
    main()
