"""Runs one contender as a process of its own, and checks what it wrote."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from bench.data import expected_offsets
from bench.tree import Tree

ROOT = Path(__file__).parent.parent
TIMEOUT = 600.0
"""Seconds a contender has for its records."""
STOP_TIMEOUT = 60.0


class ContenderError(Exception):
    """A contender ended without a result, or wrote something else than its input."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of one contender gave."""

    rows: int
    wall: float
    """Seconds."""
    cpu: float
    """Seconds, user and system, all threads of its processes."""
    rss: int
    """Peak resident bytes of its largest process, imports included."""
    processes: dict[str, Any] = field(default_factory=dict)
    """Of several processes: name -> CPU seconds and peak resident bytes."""

    @property
    def per_cpu_second(self) -> float:
        """Rows per CPU-second."""
        return self.rows / self.cpu

    @property
    def per_second(self) -> float:
        """Rows per second of wall time."""
        return self.rows / self.wall


@dataclass(slots=True)
class Ended:
    """How a process ended, and what it took."""

    code: int
    cpu: float


class Process:
    """A child process whose resource usage is taken when it ends."""

    def __init__(self, command: list[str], env: Mapping[str, str], log: Path) -> None:
        with log.open("ab") as out:
            self._popen = subprocess.Popen(
                command, env=dict(env), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
        self.log = log
        self.ended: Ended | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._popen.pid

    def poll(self) -> Ended | None:
        """None while it runs."""
        if self.ended is None:
            pid, status, usage = os.wait4(self._popen.pid, os.WNOHANG)
            if pid:
                # Not its ru_maxrss: that begins at what this process had when it forked.
                self.ended = Ended(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime)
                self._popen.returncode = self.ended.code
        return self.ended

    def wait(self, timeout: float) -> Ended:
        """Wait for its end. Raises ContenderError."""
        deadline = time.monotonic() + timeout
        while (ended := self.poll()) is None:
            if time.monotonic() > deadline:
                raise ContenderError(f"still running after {timeout:g} s; the end of {self.log}:\n{self.tail()}")
            time.sleep(0.02)
        return ended

    def stop(self, timeout: float = STOP_TIMEOUT) -> Ended:
        """SIGTERM, and SIGKILL if that does not end it in time."""
        if self.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except ContenderError:
            self._popen.kill()
            return self.wait(timeout)

    def tail(self) -> str:
        """The last lines it printed."""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-25:])


def clean_env() -> dict[str, str]:
    """Our environment without settings of ours, neither variables nor a TOML file."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MILLSTREAM_", "BENCH_"))}
    return {**env, "MILLSTREAM_CONFIG": os.devnull, "PYTHONPATH": str(ROOT)}


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def worker_command(module: str) -> list[str]:
    """The real worker."""
    return [sys.executable, "-m", "faust", "-A", module, "worker", "--without-web"]


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that is measured."""

    name: str
    command: list[str]
    topic: str
    records: int
    """Rows it has to make durable."""
    env: Mapping[str, str] | None = None
    message_rows: int = 1
    """Rows of each message of the topic; 0: what it writes has no offsets to check."""


def run(contender: Contender, servers: str, directory: Path) -> Result:
    """Run it in `directory` until its clock stops. Raises ContenderError."""
    sink, result = directory / "sink", directory / "result.json"
    sink.mkdir(parents=True)
    app = f"bench-{uuid.uuid4().hex[:12]}"
    (directory / "app.json").write_text(json.dumps(app))
    env = clean_env() | {
        "MILLSTREAM_BOOTSTRAP_SERVERS": servers,
        "MILLSTREAM_APP_ID": app,
        "MILLSTREAM_WORKER_SLOT": "bench",
        "MILLSTREAM_DATA_DIR": str(directory / "data"),
        "MILLSTREAM_LOG_LEVEL": "warning",
        "BENCH_SERVERS": servers,
        "BENCH_TOPIC": contender.topic,
        "BENCH_RECORDS": str(contender.records),
        "BENCH_RESULT": str(result),
        "BENCH_SINK": str(sink),
        **(contender.env or {}),
    }
    process = Process(contender.command, env, directory / "log")
    tree = Tree(process.pid)
    try:
        deadline = time.monotonic() + TIMEOUT
        while not result.exists():
            tree.look()
            if (ended := process.poll()) is not None and not result.exists():
                raise ContenderError(f"{contender.name} ended with {ended.code}:\n{process.tail()}")
            if time.monotonic() > deadline:
                raise ContenderError(f"{contender.name}: no result after {TIMEOUT:g} s:\n{process.tail()}")
            time.sleep(0.02)
        tree.look()
    finally:
        process.stop()
    found = json.loads(result.read_text())
    return Result(found["rows"], found["wall"], found["cpu"], max(u.rss for u in tree.seen.values()))


def check_offsets(servers: str, topic: str, sink: Path, message_rows: int = 1) -> None:
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
