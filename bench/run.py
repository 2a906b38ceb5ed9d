"""Runs the benchmarks and writes bench/results/<time>.json and the table in docs/benchmarks.md.

    python -m bench.run [--records N] [--rounds R] [--only json,arrow,table,restore,job] [--no-docs]

All contenders of a group take their turn in every round, on the same broker and topics, so that a noisy machine is
noisy for all of them. The order turns by one each round.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench import data, job
from bench.report import Row, machine, update_docs
from bench.runner import ROOT, Contender, ContenderError, Result, check_offsets, run, worker_command
from millstream.broker import EmbeddedBroker

STOCK_RECORDS = 20_000
"""Stock Faust is given fewer: its figures are per second."""
RESTORE_KEYS = 1_000_000
STOCK_RESTORE_KEYS = 20_000
TABLE_KEYS = 10_000

OFF = {"MILLSTREAM_EXACTLY_ONCE": "false"}


class Bench:
    """One run of the benchmarks."""

    def __init__(self, servers: str, directory: Path, records: int, rounds: int, job_sizes: list[int]) -> None:
        self.servers, self.directory, self.rounds, self.job_sizes = servers, directory, rounds, job_sizes
        self.records = max(1, records // data.MESSAGE_ROWS) * data.MESSAGE_ROWS
        self.rows: list[Row] = []

    # ------------------------------------------------------------------ groups
    def json(self) -> None:
        """A. JSON records -> Parquet."""
        n, few = self.records, min(self.records, STOCK_RECORDS)
        data.fill(self.servers, "json", data.json_records(n))
        data.fill(self.servers, "json-few", data.json_records(few))
        worker = worker_command("bench.apps.json")
        self._group(
            "A. JSON records, 237 B each, to fsynced Parquet",
            [
                Contender("hand-written loop, msgspec structs", _loop("structs"), "json", n),
                Contender("hand-written loop, pyarrow.json", _loop("arrow"), "json", n),
                Contender("millstream, exactly once", worker, "json", n),
                Contender("millstream, at least once", worker, "json", n, OFF),
                _stock("stock Faust, take(10000)", "json-few", few, "parquet"),
            ],
            self._check_files,
        )

    def arrow(self) -> None:
        """B. Arrow messages -> Parquet."""
        n = self.records * 4
        data.fill(self.servers, "arrow", data.arrow_records(n))
        worker, arrow, rows = worker_command("bench.apps.json"), {"BENCH_PAYLOAD": "arrow"}, data.MESSAGE_ROWS
        self._group(
            f"B. Arrow messages of {data.MESSAGE_ROWS} rows to fsynced Parquet",
            [
                Contender("pyarrow's writer alone, rows in memory", _loop("writer"), "arrow", n, None, 0),
                Contender("millstream, exactly once", worker, "arrow", n, arrow, rows),
                Contender("millstream, at least once", worker, "arrow", n, arrow | OFF, rows),
            ],
            self._check_files,
        )

    def table(self) -> None:
        """C. Counting by key."""
        n, few = self.records, min(self.records, STOCK_RECORDS)
        data.fill(self.servers, "keyed", data.keyed_records(n, TABLE_KEYS))
        data.fill(self.servers, "keyed-few", data.keyed_records(few, TABLE_KEYS))
        worker = worker_command("bench.apps.table")
        self._group(
            f"C. Counting by {TABLE_KEYS} keys in a table",
            [
                Contender("millstream, exactly once", worker, "keyed", n),
                Contender("millstream, at least once", worker, "keyed", n, OFF),
                _stock("stock Faust, table[key] += 1", "keyed-few", few, "count"),
            ],
            self._check_counts,
        )

    def restore(self) -> None:
        """D. A table from its changelog."""
        sizes = {"millstream": RESTORE_KEYS, "stock": STOCK_RESTORE_KEYS}
        contenders = []
        for turn in range(self.rounds):
            for who, keys in sizes.items():
                app = f"bench-restore-{who}-{turn}"
                data.fill(self.servers, f"{app}-counts-changelog", data.changelog_records(keys))
                data.create(self.servers, f"{app}-in")
                env = {"MILLSTREAM_APP_ID": app}
                if who == "stock":
                    contenders.append(_stock("stock Faust", f"{app}-in", keys, "restore", env))
                else:
                    command = worker_command("bench.apps.restore")
                    contenders.append(Contender("millstream", command, f"{app}-in", keys, env))
        self._group(
            f"D. Restoring a table of {RESTORE_KEYS:,} keys (stock: {STOCK_RESTORE_KEYS:,})", contenders, once=True
        )

    def job(self) -> None:
        """E. The whole job."""
        group = "E. RDB files through Kafka into published, sorted Parquet (`millstream dump`)"
        for keys in self.job_sizes:
            path = self.directory / f"{keys}.rdb"
            job.make(path, keys)
            for turn in range(self.rounds):
                where = self.directory / f"job-{keys}-{turn}"
                self._add(group, f"{keys:,} keys", job.run(path, keys, self.servers, where))
                shutil.rmtree(where)
            path.unlink()

    # ------------------------------------------------------------------ checking
    def _check_files(self, contender: Contender, where: Path) -> None:
        if contender.message_rows:
            check_offsets(self.servers, contender.topic, where / "sink", contender.message_rows)

    def _check_counts(self, contender: Contender, where: Path) -> None:
        if not contender.message_rows:
            return  # stock Faust: its last changes may not have reached the changelog
        app = json.loads((where / "app.json").read_text())
        if (total := data.sum_of_values(self.servers, f"{app}-counts-changelog")) != contender.records:
            raise ContenderError(f"{contender.name}: the counts add up to {total}, not to {contender.records}")

    # ------------------------------------------------------------------ running
    def _group(
        self,
        group: str,
        contenders: list[Contender],
        check: Callable[[Contender, Path], None] | None = None,
        *,
        once: bool = False,
    ) -> None:
        for turn in range(1 if once else self.rounds):
            at = turn % len(contenders)
            for n, contender in enumerate(contenders[at:] + contenders[:at]):
                where = self.directory / f"{turn}-{n}"
                result = run(contender, self.servers, where)
                if check is not None:
                    check(contender, where)
                self._add(group, contender.name, result)
                shutil.rmtree(where)

    def _add(self, group: str, name: str, result: Result) -> None:
        row = next((r for r in self.rows if (r.group, r.name) == (group, name)), None)
        if row is None:
            row = Row(group, name)
            self.rows.append(row)
        row.results.append(result)
        print(
            f"{group[:2]} {name:42} {result.rows:>10,} rows  {result.per_second:>12,.0f}/s  "
            f"{result.per_cpu_second:>12,.0f}/CPU-s  {result.rss >> 20:>5} MiB",
            flush=True,
        )


def _loop(mode: str) -> list[str]:
    return [sys.executable, "-m", "bench.loops", mode]


def _stock(name: str, topic: str, records: int, mode: str, env: dict[str, str] | None = None) -> Contender:
    command = [sys.executable, "-m", "faust", "-A", "bench.apps.stock", "worker", "--without-web", "-l", "error"]
    return Contender(name, command, topic, records, {"BENCH_STOCK": mode, **(env or {})}, 0)


GROUPS = ("json", "arrow", "table", "restore", "job")


def main(arguments: list[str] | None = None) -> int:
    """The command. 1 if a group failed; what the others gave is written all the same."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000, help="JSON records (default 1,000,000)")
    parser.add_argument("--rounds", type=int, default=3, help="times each contender runs (default 3)")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"groups: {','.join(GROUPS)}")
    parser.add_argument("--job", default="1000000,10000000", help="keys of the RDB files of group `job`")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/benchmarks.md as it is")
    options = parser.parse_args(arguments)
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(GROUPS):
        parser.error(f"--only: no group {min(unknown)!r}; there are {', '.join(GROUPS)}")
    began, failed = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="millstream-bench-") as name:
        directory = Path(name)
        with EmbeddedBroker(directory / "kafka", heap_mib=1024) as broker:
            sizes = [int(n) for n in options.job.split(",")]
            bench = Bench(broker.bootstrap_servers, directory, options.records, options.rounds, sizes)
            for group in wanted:
                try:
                    getattr(bench, group)()
                except ContenderError as exc:
                    failed.append(group)
                    print(f"group {group} failed: {exc}", file=sys.stderr)
    now = dt.datetime.now(dt.UTC)
    found = {
        "at": now.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began),
        "machine": machine(),
        "records": bench.records,
        "rounds": options.rounds,
        "failed": failed,
        "rows": [{"group": r.group, "name": r.name, "results": [asdict(x) for x in r.results]} for r in bench.rows],
    }
    out = ROOT / "bench" / "results" / f"{now:%Y-%m-%dT%H%M}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {out}")
    if not options.no_docs:
        update_docs(ROOT / "docs" / "benchmarks.md", bench.rows, found)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
