"""Arrow messages -> embedded ClickHouse, against the inserts alone."""

from __future__ import annotations

from pathlib import Path

from bench import data
from bench.runner import Contender
from bench.session import OFF, Bench, worker
from bench.verify import ask_clickhouse, check_clickhouse, clickhouse_command

SECONDS = (5, 40)


def run(bench: Bench) -> None:
    """Fill the topic, take turns."""
    n, rows = bench.records * 2, data.MESSAGE_ROWS
    bench.title("clickhouse", f"Arrow messages of {rows} rows into embedded ClickHouse (MergeTree)")
    data.fill(bench.servers, "clickhouse", data.arrow_records(n))

    def contender(key: str, name: str, command: list[str], env: dict[str, str]) -> Contender:
        return Contender(key, name, command, "clickhouse", n, env, rows)

    contenders = [
        contender("alone", "inserts alone, rows in memory", clickhouse_command("alone"), {}),
        contender("on", "millstream, exactly once", worker("clickhouse"), {}),
        contender("off", "millstream, at least once", worker("clickhouse"), OFF),
    ]

    def prepare(contender: Contender, where: Path, _app: str) -> None:
        if contender.key != "alone":
            ask_clickhouse("create", where / "sink")

    def check(_contender: Contender, where: Path, _app: str) -> None:
        check_clickhouse(bench.servers, "clickhouse", where / "sink", rows)

    bench.take_turns("clickhouse", contenders, check, prepare=prepare)
