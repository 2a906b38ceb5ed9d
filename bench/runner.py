"""Runs one contender as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

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
    bytes_out: int = 0
    """Bytes of files written, and of the log of topics written."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What only its group measures."""

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

    key: str
    """What targets and plots call it."""
    name: str
    command: list[str]
    topic: str
    records: int
    """Rows it has to make durable."""
    env: Mapping[str, str] = field(default_factory=dict)
    message_rows: int = 1
    """Rows of each message of the topic; 0: what it writes has no offsets to check."""


class Running:
    """A contender under way in `directory`, until the block ends. Raises ContenderError where it ends before."""

    def __init__(self, contender: Contender, servers: str, directory: Path, app: str) -> None:
        self.contender = contender
        self.sink, self._result = directory / "sink", directory / "result.json"
        self.sink.mkdir(parents=True, exist_ok=True)
        self.env = clean_env() | {
            "MILLSTREAM_BOOTSTRAP_SERVERS": servers,
            "MILLSTREAM_APP_ID": app,
            "MILLSTREAM_WORKER_SLOT": "bench",
            "MILLSTREAM_DATA_DIR": str(directory / "data"),
            "MILLSTREAM_LOG_LEVEL": "warning",
            "BENCH_SERVERS": servers,
            "BENCH_TOPIC": contender.topic,
            "BENCH_RECORDS": str(contender.records),
            "BENCH_RESULT": str(self._result),
            "BENCH_SINK": str(self.sink),
            **{name: value.format(app=app) for name, value in contender.env.items()},
        }
        self._log = directory / "log"

    def __enter__(self) -> Self:
        self.process = Process(self.contender.command, self.env, self._log)
        self.tree = Tree(self.process.pid)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()

    def wait(self, reached: Callable[[], bool], what: str, timeout: float = TIMEOUT) -> None:
        """Until something is reached, its processes watched meanwhile."""
        deadline = time.monotonic() + timeout
        while not reached():
            self.tree.look()
            if (ended := self.process.poll()) is not None and not reached():
                raise ContenderError(f"{self.contender.name} ended with {ended.code}:\n{self.process.tail()}")
            if time.monotonic() > deadline:
                tail = self.process.tail()
                raise ContenderError(f"{self.contender.name}: no {what} after {timeout:g} s:\n{tail}")
            time.sleep(0.05)
        self.tree.look()

    def started(self) -> bool:
        """Whether its clock runs."""
        return self._result.with_name("started").exists()

    def done(self) -> bool:
        """Whether its clock has stopped."""
        return self._result.exists()

    def result(self, **extra: Any) -> Result:
        """What it gave, once done."""
        found = json.loads(self._result.read_text())
        rss = max(u.rss for u in self.tree.seen.values())
        return Result(found["rows"], found["wall"], found["cpu"], rss, extra=extra)


def app_id(contender: Contender) -> str:
    """A new application id, unless the contender has one: its group, and the beginning of its topics' names."""
    return contender.env.get("MILLSTREAM_APP_ID") or f"bench-{uuid.uuid4().hex[:12]}"


def run(contender: Contender, servers: str, directory: Path, app: str) -> Result:
    """Run it until its clock stops. Raises ContenderError."""
    with Running(contender, servers, directory, app) as running:
        running.wait(running.done, "result")
        return running.result()


def size_of(*paths: Path) -> int:
    """Bytes of all files below."""
    return sum(f.stat().st_size for path in paths for f in path.rglob("*") if f.is_file())
