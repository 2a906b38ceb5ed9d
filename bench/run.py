"""Runs the benchmarks; writes bench/results/<time>.json, and after a run of all groups docs/benchmarks.md.

    python -m bench.run [--records N] [--rounds R] [--only json,arrow,…] [--pin none|apart] [--docs]

All contenders of a group take their turn in every round, on the same broker and topics, so that a noisy machine is
noisy for all of them. The order turns by one each round.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.groups import NAMES
from bench.runner import ROOT
from bench.session import Bench, Options
from millstream.broker import EmbeddedBroker

USUAL_RECORDS = 1_000_000


def main(arguments: list[str] | None = None) -> int:
    """The command. 1 if a group failed; what the others gave is written all the same."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # contenders are stopped on the way out
    wanted = options.only.split(",")
    print(f"about {_estimate(wanted, options) / 60:.0f} minutes on two quiet cores", flush=True)
    for_broker, for_contenders, pinned = _cores(options.pin)
    began = time.monotonic()
    out = options.out or ROOT / "bench" / "results" / f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H%M}.json"
    about: dict[str, Any] = {
        "commit": _commit(),
        "machine": report.machine(),
        "pinned": pinned,
        "rounds": options.rounds,
    }
    if options.dir is not None:
        options.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="millstream-bench-", dir=options.dir) as name:
        directory = Path(name)
        os.sched_setaffinity(0, for_broker)  # children inherit
        with EmbeddedBroker(directory / "kafka", heap_mib=1024) as broker:
            os.sched_setaffinity(0, for_contenders)
            sizes = tuple(int(n) for n in options.job.split(","))
            choice = Options(options.records, options.rounds, sizes, options.stop)
            bench = Bench(broker.bootstrap_servers, directory / "kafka" / "log", directory, choice)
            for group in wanted:
                since = time.monotonic()
                try:
                    importlib.import_module(f"bench.groups.{group}").run(bench)
                except Exception as exc:  # noqa: BLE001 - the other groups are still wanted; this one counts as failed
                    bench.fail(group, exc)
                print(f"{group}: {time.monotonic() - since:.0f} s", flush=True)
                about |= {
                    "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                    "seconds": round(time.monotonic() - began),
                    "load": ", ".join(f"{x:.1f}" for x in os.getloadavg()),
                    "records": bench.records,
                    "left_out": bench.left_out,
                    "failed": bench.failed,
                    "titles": bench.titles,
                }
                report.save(out, about, bench.rows)  # after each group: a run that is cut short has not been in vain
    print(f"written: {out}")
    if options.docs or (set(wanted) == set(NAMES) and not options.no_docs):
        report.update([out])
    return 1 if bench.failed else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=USUAL_RECORDS, help="JSON records (default 1,000,000)")
    parser.add_argument("--rounds", type=int, default=5, help="times each contender runs (default 5)")
    parser.add_argument("--only", default=",".join(NAMES), help=f"groups: {','.join(NAMES)}")
    parser.add_argument("--job", default="1000000,10000000", help="keys of the RDB files of group `job`")
    parser.add_argument("--stop", type=float, default=120.0, help="seconds the sink stands still in `memory` (120)")
    parser.add_argument(
        "--pin", choices=("auto", "none", "apart"), default="auto", help="broker on cores of its own; auto: from 4 on"
    )
    parser.add_argument("--dir", type=Path, help="where topics and files go for the time being (default: TMPDIR)")
    parser.add_argument("--out", type=Path, help="results file")
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md although not all groups run")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/benchmarks.md as it is")
    options = parser.parse_args(arguments)
    if unknown := set(options.only.split(",")) - set(NAMES):
        parser.error(f"--only: no group {min(unknown)!r}; there are {', '.join(NAMES)}")
    return options


def _estimate(groups: Sequence[str], options: argparse.Namespace) -> float:
    """Seconds. Starting and stopping take about half of a usual turn; that half does not shrink with the records."""
    size = 0.5 + 0.5 * options.records / USUAL_RECORDS
    seconds = 10.0
    for group in groups:
        once, each = importlib.import_module(f"bench.groups.{group}").SECONDS
        seconds += (once + each * options.rounds) * size
    return seconds


def _cores(pin: str) -> tuple[set[int], set[int], str]:
    """Cores of the broker, cores of the contenders, and how to put it into words."""
    cores = sorted(os.sched_getaffinity(0))
    if pin == "none" or len(cores) < (4 if pin == "auto" else 2):
        return set(cores), set(cores), f"together on {len(cores)} cores"
    half = len(cores) // 2
    return set(cores[:half]), set(cores[half:]), f"apart, {half} and {len(cores) - half} cores"


def _commit() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
