"""Arrow messages -> Parquet, against the writer alone."""

from __future__ import annotations

from pathlib import Path

from bench import data
from bench.runner import Contender
from bench.session import OFF, Bench, loop, worker
from bench.verify import check_files

SECONDS = (5, 30)


def run(bench: Bench) -> None:
    """Fill the topic, take turns."""
    n, rows = bench.records * 4, data.MESSAGE_ROWS
    bench.title("arrow", f"Arrow messages of {rows} rows to fsynced Parquet")
    data.fill(bench.servers, "arrow", data.arrow_records(n))
    arrow = {"BENCH_PAYLOAD": "arrow"}
    contenders = [
        Contender("alone", "pyarrow's writer alone, rows in memory", loop("writer"), "arrow", n, {}, 0),
        Contender("on", "millstream, exactly once", worker("json"), "arrow", n, arrow, rows),
        Contender("off", "millstream, at least once", worker("json"), "arrow", n, arrow | OFF, rows),
    ]

    def check(contender: Contender, where: Path, _app: str) -> None:
        if contender.message_rows:
            check_files(bench.servers, "arrow", where / "sink", rows)

    bench.take_turns("arrow", contenders, check)
