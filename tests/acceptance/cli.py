"""Runs `millstream` as a user does, and reads what it left with readers that share no code with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq
from click.testing import CliRunner, Result

from millstream import settings as settings_module
from streams.cli import cli as program

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "rdb"
PROGRAM = str(Path(sys.executable).with_name("millstream"))

Row = tuple[int, bytes, str, str]
"""db, key, type, encoding."""


class Cli:
    """The program in a working directory of its own, with a broker."""

    def __init__(self, kafka: str | None, directory: Path, **settings: str) -> None:
        self.directory = directory
        own = {"DATA_DIR": str(directory / "data")} | ({"BOOTSTRAP_SERVERS": kafka} if kafka else {}) | settings
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MILLSTREAM_")}
        self.environment = kept | {f"MILLSTREAM_{k}": v for k, v in own.items()}

    def __call__(self, *arguments: object, timeout: float = 120, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            [PROGRAM, *map(str, arguments)],
            cwd=self.directory,
            env=self.environment | {f"MILLSTREAM_{k}": v for k, v in settings.items()},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def here(self, *arguments: object, **settings: str) -> Result:
        """Run it in this process, which is quicker than to start one. From one thread at a time."""
        given = self.environment | {f"MILLSTREAM_{k}": v for k, v in settings.items()}
        with patch.dict(os.environ, {k: v for k, v in given.items() if k.startswith("MILLSTREAM_")}):
            settings_module._current = None
            try:
                return CliRunner().invoke(program, [str(a) for a in arguments])
            finally:
                settings_module._current = None

    def start(self, *arguments: object, **settings: str) -> subprocess.Popen[str]:
        """Start it, to be looked at while it runs."""
        return subprocess.Popen(
            [PROGRAM, *map(str, arguments)],
            cwd=self.directory,
            env=self.environment | {f"MILLSTREAM_{k}": v for k, v in settings.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ok(self, *arguments: object, **settings: str) -> str:
        """Run it, and it has to succeed; what it printed."""
        done = self(*arguments, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def batches(self) -> list[dict[str, object]]:
        """`millstream batches list`."""
        return [json.loads(line) for line in self.ok("batches", "list", "--json").splitlines()]

    @contextmanager
    def worker(self, slot: str = "w1", *, web: bool = False, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
        """`faust -A streams worker`, ended with SIGTERM; `web`: with its web views, at the setting's port."""
        log = self.directory / f"worker-{slot}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "streams.cli.child", "worker", *([] if web else ["--without-web"])],
                cwd=self.directory,
                env=self.environment
                | {"MILLSTREAM_WORKER_SLOT": slot}
                | {f"MILLSTREAM_{k}": v for k, v in settings.items()},
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                finally:
                    process.kill()
                    process.wait()
            assert process.stdin
            process.stdin.close()


def expected_rows(fixture: str) -> Counter[Row]:
    """What is in a fixture, as the server that wrote it said."""
    rows: Counter[Row] = Counter()
    for key in json.loads((FIXTURES / f"{fixture}.json").read_text())["rows"]:
        rows[key["db"], bytes.fromhex(key["key"]), key["type"], key["encoding"]] += 1
    return rows


def parquet_rows(path: Path) -> Counter[Row]:
    """What is in a published file."""
    table = pq.read_table(path, columns=["db", "key", "type", "encoding"])
    return Counter(zip(*(table.column(i).to_pylist() for i in range(4)), strict=True))


def tree(directory: Path) -> set[str]:
    """All files below, as relative paths, but for our own staging area."""
    found = (p.relative_to(directory) for p in directory.rglob("*") if p.is_file())
    return {str(p) for p in found if p.parts[0] != ".staging"}


def clickhouse(path: Path, sql: str) -> list[tuple[str, ...]]:
    """Rows of a query to the embedded engine, in a process of its own: it takes one at a time."""
    code = "import sys, chdb.session as s; print(s.Session(sys.argv[1]).query(sys.argv[2], 'TSV').data(), end='')"
    done = subprocess.run([sys.executable, "-c", code, str(path), sql], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [tuple(line.split("\t")) for line in done.stdout.splitlines()]


def pairs(files: Mapping[str, Path]) -> list[str]:
    """`--path … --instance …` for instance -> file."""
    return [word for instance, path in files.items() for word in ("--path", str(path), "--instance", instance)]
