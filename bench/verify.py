"""What a contender wrote is compared with the topic, by distinct (partition, offset)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from bench.data import expected_offsets
from bench.runner import ROOT, ContenderError, clean_env


def check_files(servers: str, topic: str, sink: Path, message_rows: int = 1) -> None:
    """Every (partition, offset) of the topic stands in the files, once for each row. Raises ContenderError."""
    found: dict[int, list[Any]] = {}
    for path in sorted(sink.rglob("*.parquet")):
        file = pq.ParquetFile(path)
        if "_partition" in file.schema_arrow.names:
            table = file.read(["_partition", "_offset"])
            partitions, offsets = (table[c].to_numpy() for c in ("_partition", "_offset"))
            for p in np.unique(partitions).tolist():
                found.setdefault(p, []).append(offsets[partitions == p])
        else:  # ParquetStream: <dir>/<topic>/<partition>/chunk-<chunk id>.parquet
            found.setdefault(int(path.parent.name), []).append(file.read(["_offset"])["_offset"].to_numpy())
    for p, wanted in expected_offsets(servers, topic).items():
        given = np.sort(np.concatenate(found.get(p, [np.empty(0, np.int64)])))
        if not np.array_equal(given, np.repeat(wanted, message_rows)):
            missing, rows = len(np.setdiff1d(wanted, given)), len(wanted) * message_rows
            raise ContenderError(
                f"{topic}-{p}: {missing} of {len(wanted)} records missing, {len(given)} rows of {rows}"
            )


def check_clickhouse(servers: str, topic: str, directory: Path, message_rows: int) -> None:
    """The same of the table in embedded ClickHouse, read by a process of its own. Raises ContenderError."""
    found = {
        p: (int(n), *map(int, rest)) for p, n, *rest in json.loads(ask_clickhouse("check", directory).splitlines()[-1])
    }
    for p, wanted in expected_offsets(servers, topic).items():
        rows = len(wanted) * message_rows
        should = (rows, len(wanted), int(wanted[0]), int(wanted[-1]), message_rows, message_rows)
        if found.get(p) != should:
            told = "rows, distinct offsets, first, last, fewest and most rows of an offset"
            raise ContenderError(f"{topic}-{p}: {found.get(p)} instead of {should} ({told})")


def clickhouse_command(verb: str) -> list[str]:
    """bench.clickhouse in a process of its own: an engine per process and directory."""
    return [sys.executable, "-m", "bench.clickhouse", verb]


def ask_clickhouse(verb: str, directory: Path) -> str:
    """What it prints. Raises ContenderError."""
    env = clean_env() | {"BENCH_SINK": str(directory)}
    done = subprocess.run(clickhouse_command(verb), cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ContenderError(f"bench.clickhouse {verb} in {directory}:\n{done.stderr[-2000:]}")
    return done.stdout
