"""JSON records -> Parquet, everybody."""

from __future__ import annotations

from pathlib import Path

from bench import data
from bench.runner import Contender
from bench.session import OFF, OTHERS, Bench, loop, stock, worker
from bench.verify import check_files

SECONDS = (10, 75)


def run(bench: Bench) -> None:
    """Fill the topic, take turns."""
    n, few = bench.records, bench.few
    bench.title("json", "JSON records, 237 B each, to fsynced Parquet")
    data.fill(bench.servers, "json", data.json_records(n))
    data.fill(bench.servers, "json-half", data.json_records(n // 2))
    data.fill(bench.servers, "json-few", data.json_records(few))
    contenders = [
        Contender("loop_structs", "hand-written loop, msgspec structs", loop("structs"), "json", n),
        Contender("loop_arrow", "hand-written loop, pyarrow.json", loop("arrow"), "json", n),
        Contender("on", "millstream, exactly once", worker("json"), "json", n),
        Contender("off", "millstream, at least once", worker("json"), "json", n, OFF),
        *_others(bench, n, n // 2),
        stock("stock Faust, take(10000)", "json-few", few, "parquet"),
    ]

    def check(contender: Contender, where: Path, _app: str) -> None:
        if contender.message_rows:
            check_files(bench.servers, contender.topic, where / "sink")

    bench.take_turns("json", contenders, check)


def _others(bench: Bench, n: int, half: int) -> list[Contender]:
    if not OTHERS.exists():
        bench.leave_out("Quix Streams and Bytewax", f"{OTHERS.parent.parent} is missing, `make bench` makes it")
        return []
    quix, flow = [str(OTHERS), "-m", "bench.contenders.quix"], "bench.contenders.bytewax_flow:flow"
    return [
        Contender("quix_off", "Quix Streams, at least once", [*quix, "at-least-once", "values"], "json-half", half),
        Contender("quix_on", "Quix Streams, exactly once", [*quix, "exactly-once", "values"], "json-half", half),
        Contender(
            "quix_bytes",
            "Quix Streams, at least once, pyarrow.json",
            [*quix, "at-least-once", "bytes"],
            "json-half",
            half,
        ),
        Contender("bytewax", "Bytewax, no guarantee", [str(OTHERS), "-m", "bytewax.run", flow], "json", n),
    ]
