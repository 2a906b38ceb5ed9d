"""The whole job: `millstream dump from-file … into-parquet --sort`, its processes measured from outside."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.runner import TIMEOUT, ContenderError, Process, Result, clean_env
from bench.tree import Tree


def make(path: Path, keys: int) -> None:
    """Write the RDB file in a process of its own: ours must not grow (its children are measured from its size on)."""
    code = f"from bench.make_rdb import write_mixed; write_mixed({str(path)!r}, {keys})"
    made = Process([sys.executable, "-c", code], clean_env(), path.with_suffix(".log"))
    if made.wait(TIMEOUT).code:
        raise ContenderError(f"no RDB file:\n{made.tail()}")


def run(path: Path, keys: int, servers: str, directory: Path) -> Result:
    """CPU of command, feeder and worker from their first instruction to their last, imports included."""
    directory.mkdir()
    out = directory / "out"
    env = clean_env() | {"MILLSTREAM_BOOTSTRAP_SERVERS": servers, "MILLSTREAM_DATA_DIR": str(directory / "data")}
    source = ["--path", str(path), "--cluster", "bench", "--instance", "10.0.0.1:6379"]
    command = [str(Path(sys.executable).with_name("millstream")), "dump", "from-file", *source]
    began = time.perf_counter()
    process = Process([*command, "into-parquet", "--dir", str(out), "--sort"], env, directory / "log")
    tree = Tree(process.pid)
    try:
        while (ended := process.poll()) is None:
            tree.look()
            if time.perf_counter() - began > TIMEOUT:
                raise ContenderError(f"millstream dump: not done after {TIMEOUT:g} s:\n{process.tail()}")
            time.sleep(0.02)
    finally:
        process.stop()
    wall = time.perf_counter() - began
    if ended.code:
        raise ContenderError(f"millstream dump ended with {ended.code}:\n{process.tail()}")
    check_rows(out, keys)
    check_keys(out, keys)
    each = {u.name: {"cpu": round(u.cpu, 2), "rss": u.rss} for u in tree.seen.values() if u.cpu > 0.1}
    # The kernel gives the CPU time of all descendants that were waited for.
    return Result(keys, wall, ended.cpu, max(u.rss for u in tree.seen.values()), each)


def check_rows(directory: Path, wanted: int) -> None:
    """So many rows stand in the files below a directory. Raises ContenderError."""
    found = sum(pq.read_metadata(path).num_rows for path in directory.rglob("*.parquet"))
    if found != wanted:
        raise ContenderError(f"{found} rows in {directory}, {wanted} were to be there")


def check_keys(directory: Path, wanted: int) -> None:
    """All keys of the one published file are distinct and sorted. Raises ContenderError."""
    (path,) = directory.rglob("*.parquet")
    last, found = b"", 0
    for batch in pq.ParquetFile(path).iter_batches(columns=["key"]):
        keys = batch["key"]
        if keys[0].as_py() <= last or pc.all(pc.less(keys[:-1], keys[1:])).as_py() not in {True, None}:
            raise ContenderError(f"{path}: keys are not strictly ascending near row {found}")
        last, found = keys[-1].as_py(), found + len(keys)
    if found != wanted:
        raise ContenderError(f"{path}: {found} keys of {wanted}")
