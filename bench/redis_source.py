"""Memory of a dump off a Redis, by the size of the dump: `make redis-memory`. Starts a server, and a broker of its own.

python -m bench.redis_source [--keys 200000] [--bytes 500 5000 20000] [--diskless]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from bench.job import check_rows
from bench.runner import TIMEOUT, ContenderError, Process, clean_env
from bench.tree import Tree
from tests.support.redis_server import RedisServer, running

MIB = 1 << 20


def measure(server: RedisServer, keys: int, directory: Path) -> dict[str, object]:
    """One dump: seconds, and peak resident MiB of each process."""
    out = directory / "out"
    env = clean_env() | {"MILLSTREAM_DATA_DIR": str(directory / "data")}
    source = ["dump", "from-standalone", "--addr", server.address, "--cluster", "bench"]
    command = [str(Path(sys.executable).with_name("millstream")), *source, "into-parquet", "--dir", str(out)]
    began = time.perf_counter()
    process = Process(command, env, directory / "log")
    tree = Tree(process.pid)
    try:
        while (ended := process.poll()) is None:
            tree.look()
            if time.perf_counter() - began > 3 * TIMEOUT:
                raise ContenderError(f"not done after {3 * TIMEOUT:g} s:\n{process.tail()}")
            time.sleep(0.05)
    finally:
        process.stop()
    if ended.code:
        raise ContenderError(f"millstream dump ended with {ended.code}:\n{process.tail()}")
    check_rows(out, keys)
    peaks = {u.name: u.rss // MIB for u in tree.seen.values() if u.cpu > 0.1}
    return {"seconds": round(time.perf_counter() - began, 1), "peak_mib": peaks}


def main() -> None:
    """Print a line of JSON per size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=200_000)
    parser.add_argument("--bytes", type=int, nargs="+", default=[500, 5000, 20_000], help="of each value")
    parser.add_argument("--diskless", action="store_true")
    given = parser.parse_args()
    options = [
        "--repl-diskless-sync",
        "yes" if given.diskless else "no",
        "--rdbcompression",
        "no",
        "--enable-debug-command",
        "yes",
    ]
    for size in given.bytes:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as folder:
            directory = Path(folder)
            with running(directory / "redis", *options) as server:
                server.call("DEBUG", "POPULATE", given.keys, "key", size)
                found = measure(server, given.keys, directory)
        dump_mib = given.keys * size // MIB
        print(json.dumps({"dump_mib": dump_mib, "diskless": given.diskless, **found}), flush=True)


if __name__ == "__main__":
    main()
