"""The stopwatch inside a contender: from the moment it may fetch to the last row durable, in its own CPU and wall time.

The same for every contender, so that imports, connecting and joining a group count for none. The process that measures
waits for the result file, then ends the contender and reads its peak memory.
"""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from typing import Any


def cpu_seconds() -> float:
    """User and system time of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Clock:
    """Counts rows up to `total`, then writes the result to `out`; `started` beside it appears with the start."""

    def __init__(self, total: int, out: Path) -> None:
        self.total, self.out = total, out
        self.rows = 0
        self._began: tuple[float, float] | None = None

    @classmethod
    def from_env(cls) -> Clock:
        """As told by the process that measures: BENCH_RECORDS, BENCH_RESULT."""
        return cls(int(os.environ["BENCH_RECORDS"]), Path(os.environ["BENCH_RESULT"]))

    def start(self) -> None:
        """The contender may fetch from now on. Only the first call counts."""
        if self._began is None:
            self.out.with_name("started").touch()
            self._began = time.perf_counter(), cpu_seconds()

    def add(self, rows: int, **extra: Any) -> bool:
        """So many more rows are durable. True when that were all; `extra` then goes into the result."""
        before, self.rows = self.rows, self.rows + rows
        if self.rows < self.total:
            return False
        if before >= self.total:
            return True
        assert self._began is not None, "the clock was never started"
        wall, cpu = time.perf_counter() - self._began[0], cpu_seconds() - self._began[1]
        tmp = self.out.with_suffix(".tmp")
        tmp.write_text(json.dumps({"rows": self.rows, "wall": wall, "cpu": cpu, **extra}))
        tmp.rename(self.out)
        return True
