"""The same work on more partitions, and on more records."""

from __future__ import annotations

from pathlib import Path

from bench import data
from bench.runner import Contender
from bench.session import Bench, worker
from bench.verify import check_files

SECONDS = (40, 80)
PARTITIONS = (1, 4, 16, 64)
FACTORS = (0.1, 1, 10)


def run(bench: Bench) -> None:
    """Partitions at the same number of records, records at 4 partitions."""
    bench.title("growth", "JSON records to Parquet, exactly once: more partitions, more records")
    n = bench.records
    sizes = {(f"p{p}", p, n): f"{p} partitions, {n:,} records" for p in PARTITIONS}
    sizes |= {
        (f"n{factor:g}", data.PARTITIONS, int(n * factor)): f"{data.PARTITIONS} partitions, {int(n * factor):,} records"
        for factor in FACTORS
        if factor != 1
    }
    contenders = []
    for (key, partitions, records), name in sizes.items():
        topic = f"growth-{key}"
        data.fill(bench.servers, topic, data.json_records(records, partitions), partitions)
        contenders.append(Contender(key, name, worker("json"), topic, records))

    def check(contender: Contender, where: Path, _app: str) -> None:
        check_files(bench.servers, contender.topic, where / "sink")

    bench.take_turns("growth", contenders, check)
    data.drop(bench.servers, *(c.topic for c in contenders))
