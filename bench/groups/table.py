"""Counting by key in a table, against stock Faust and Kafka Streams."""

from __future__ import annotations

from pathlib import Path

from bench import data
from bench.kafka_streams import build
from bench.runner import Contender, ContenderError
from bench.session import OFF, Bench, stock, worker

SECONDS = (10, 75)
KEYS = 1_000_000
OUT = {"BENCH_OUT": "{app}-out"}


def run(bench: Bench) -> None:
    """Fill the topic, take turns."""
    n, few, part = bench.records, bench.few, bench.records // 4
    bench.title("table", f"Counting by key, {KEYS:,} keys: topic -> table (-> topic)")
    data.fill(bench.servers, "keyed", data.keyed_records(n, KEYS))
    data.fill(bench.servers, "keyed-part", data.keyed_records(part, KEYS))
    data.fill(bench.servers, "keyed-few", data.keyed_records(few, KEYS))
    count, rows, columns = worker("table"), {"BENCH_TABLE": "rows"}, {"BENCH_TABLE": "columns"}
    contenders = [
        Contender("on", "millstream, exactly once", count, "keyed", n, columns),
        Contender("off", "millstream, at least once", count, "keyed", n, columns | OFF),
        Contender("on_out", "millstream, exactly once, -> topic", count, "keyed", n, columns | OUT),
        Contender("on_rows", "millstream, exactly once, row by row", count, "keyed-part", part, rows),
        stock("stock Faust, row by row", "keyed-few", few, "count"),
    ]
    try:
        java = build.command()
    except ContenderError as exc:
        bench.leave_out("Kafka Streams", str(exc))
    else:
        contenders += [
            Contender("streams", "Kafka Streams, exactly_once_v2", java, "keyed", n),
            Contender("streams_out", "Kafka Streams, exactly_once_v2, -> topic", java, "keyed", n, OUT),
        ]

    def prepare(contender: Contender, _where: Path, app: str) -> None:
        if contender.env.get("BENCH_OUT"):
            data.create(bench.servers, contender.env["BENCH_OUT"].format(app=app))

    def check(contender: Contender, _where: Path, app: str) -> None:
        """The last values of all keys add up to the records, in the changelog and in the output topic."""
        if not contender.message_rows:
            return  # stock Faust: its last changes may not have reached the changelog
        number = int if contender.key not in {"streams", "streams_out"} else _java_long
        topics = [f"{app}-counts-changelog", *filter(None, [contender.env.get("BENCH_OUT", "").format(app=app)])]
        for topic in topics:
            if (total := data.sum_of_values(bench.servers, topic, number)) != contender.records:
                raise ContenderError(f"{contender.name}: {topic} adds up to {total}, not to {contender.records}")
        data.drop(bench.servers, *topics)

    bench.take_turns("table", contenders, check, prepare=prepare)


def _java_long(value: bytes) -> int:
    return int.from_bytes(value, "big")
