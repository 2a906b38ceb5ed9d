"""How fast the RDB parser is: keys per CPU-second, including the Arrow batches, and peak memory.

python bench/rdb_parse.py [KEYS] [FILE]      (without FILE, mixed small keys are generated)
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

from make_rdb import write_mixed

from sources.rdb import RdbReader


def main(keys: int, path: Path) -> None:
    """Parse the file three times and print the figures of each run."""
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began, rows, batches = time.process_time(), 0, 0
        with path.open("rb") as file:
            for batch in RdbReader(file):
                rows += batch.num_rows
                batches += 1
        spent = time.process_time() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{rows} keys in {batches} batches, {path.stat().st_size / rows:.1f} bytes a key: {spent:.2f} CPU-s, "
            f"{rows / spent:,.0f} keys per CPU-s; peak RSS {peak / 1024:.0f} MiB ({before / 1024:.0f} before)"
        )


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        given = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(folder) / "mixed.rdb"
        if len(sys.argv) <= 2:
            write_mixed(given, number)
        main(number, given)
