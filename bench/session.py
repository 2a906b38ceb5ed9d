"""What the groups share: the broker, the order of turns, the results."""

from __future__ import annotations

import shutil
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import data
from bench.runner import ROOT, Contender, ContenderError, Result, app_id, run, size_of

STOCK_RECORDS = 20_000
"""Stock Faust is given fewer: its figures are per second."""
OFF = {"MILLSTREAM_EXACTLY_ONCE": "false"}
OTHERS = ROOT / "bench" / ".venv" / "bin" / "python"
"""Has Quix Streams and Bytewax: `make bench` makes it from bench/requirements.txt."""


@dataclass(slots=True)
class Row:
    """All results of one contender in a group."""

    group: str
    key: str
    name: str
    results: list[Result] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Options:
    """How long it takes."""

    records: int
    """JSON records; other sizes follow from it."""
    rounds: int
    job_sizes: tuple[int, ...] = (1_000_000, 10_000_000)
    stop_seconds: float = 120.0
    """How long the sink stands still in the memory group."""


Turn = Callable[[Contender, Path, str], None]
"""Is given a contender, its directory and its application id."""


class Bench:
    """One run of the benchmarks."""

    def __init__(self, servers: str, kafka: Path, directory: Path, options: Options) -> None:
        self.servers, self._kafka, self.directory = servers, kafka, directory
        self.rounds, self.options = options.rounds, options
        self.records = max(1, options.records // data.MESSAGE_ROWS) * data.MESSAGE_ROWS
        self.few = min(self.records, STOCK_RECORDS)
        self.rows: list[Row] = []
        self.titles: dict[str, str] = {}
        self.left_out: list[str] = []
        self.failed: list[str] = []

    def title(self, group: str, text: str) -> None:
        """What stands above the group's table."""
        self.titles[group] = text

    def take_turns(
        self,
        group: str,
        contenders: list[Contender],
        check: Turn | None = None,
        *,
        once: bool = False,
        prepare: Turn | None = None,
    ) -> None:
        """Each contender once in every round, each time with another one first. One that fails is out from then on."""
        out: set[str] = set()
        for turn in range(1 if once else self.rounds):
            at = turn % len(contenders)
            for n, contender in enumerate(contenders[at:] + contenders[:at]):
                if contender.key in out:
                    continue
                where, app = self.directory / f"{group}-{turn}-{n}", app_id(contender)
                try:
                    if prepare is not None:
                        prepare(contender, where, app)
                    result = run(contender, self.servers, where, app)
                    bytes_out = self.bytes_out(where, app)
                    if check is not None:
                        check(contender, where, app)
                except ContenderError as exc:
                    out.add(contender.key)
                    self.fail(f"{group}, {contender.name}", exc)
                else:
                    self.add(group, contender.key, contender.name, replace(result, bytes_out=bytes_out))
                    shutil.rmtree(where)

    def bytes_out(self, where: Path, app: str) -> int:
        """Bytes that a contender wrote: its sink's files, and the log of its own topics."""
        logs = [s for p in self._kafka.glob(f"{app}-*") for s in p.glob("*.log")]
        return size_of(where / "sink") + sum(s.stat().st_size for s in logs)

    def add(self, group: str, key: str, name: str, result: Result) -> None:
        """Keep a result and print it."""
        row = next((r for r in self.rows if (r.group, r.key) == (group, key)), None)
        if row is None:
            row = Row(group, key, name)
            self.rows.append(row)
        row.results.append(result)
        extra = "  ".join(f"{k} {v:g}" for k, v in result.extra.items() if isinstance(v, int | float))
        print(
            f"{group:10} {name:48} {result.rows:>10,} rows  {result.per_second:>12,.0f}/s  "
            f"{result.per_cpu_second:>12,.0f}/CPU-s  {result.rss >> 20:>5} MiB  {extra}",
            flush=True,
        )

    def fail(self, what: str, error: Exception) -> None:
        """Something did not do what it had to: in the results, and all of it on standard error."""
        told = (str(error) or type(error).__name__).splitlines()[0]
        self.failed.append(f"{what}: {told}")
        print(f"FAILED: {what}:", file=sys.stderr)
        traceback.print_exception(error)

    def leave_out(self, what: str, why: str) -> None:
        """A contender cannot be had here: said, not hidden."""
        self.left_out.append(f"{what}: {why}")
        print(f"left out: {what}: {why}", file=sys.stderr, flush=True)


def worker(module: str) -> list[str]:
    """The real worker."""
    return [sys.executable, "-m", "faust", "-A", f"bench.apps.{module}", "worker", "--without-web"]


def loop(mode: str) -> list[str]:
    """A hand-written loop."""
    return [sys.executable, "-m", "bench.loops", mode]


def stock(name: str, topic: str, records: int, mode: str, env: Mapping[str, str] | None = None) -> Contender:
    """Stock Faust. What it writes is not checked: it promises less."""
    command = [sys.executable, "-m", "faust", "-A", "bench.apps.stock", "worker", "--without-web", "-l", "error"]
    return Contender("stock", name, command, topic, records, {"BENCH_STOCK": mode, **(env or {})}, 0)
