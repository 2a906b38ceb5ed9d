"""The targets of the project, each judged from the results: kept or missed, nothing in between.

Where a target names no kind of rate, both must do: rows per CPU-second and rows per second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import NamedTuple

from bench.session import Row

Rows = dict[tuple[str, str], Row]


class Verdict(NamedTuple):
    """A line of the table."""

    what: str
    goal: str
    reached: str
    kept: bool | None
    """None: a figure without a goal."""
    where: str


def cpu(row: Row) -> float:
    """Rows per CPU-second."""
    return median(r.per_cpu_second for r in row.results)


def wall(row: Row) -> float:
    """Rows per second."""
    return median(r.per_second for r in row.results)


def verdicts(rows: list[Row]) -> Iterator[Verdict]:
    """What can be judged from these results."""
    by = {(r.group, r.key): r for r in rows}
    for judge in (_json, _alone, _cost, _table, _restore, _outbox, _projection, _latency, _memory, _growth):
        yield from judge(by)


def table(rows: list[Row]) -> list[str]:
    """The table."""
    text = ["| target | goal | reached | | where |", "|---|---|---|---|---|"]
    for v in verdicts(rows):
        mark = "" if v.kept is None else "yes" if v.kept else "**no**"
        text.append(f"| {v.what} | {v.goal} | {v.reached} | {mark} | {v.where} |")
    return text


def _times(ours: Row, theirs: Row, at_least: float) -> tuple[str, bool]:
    a, b = cpu(ours) / cpu(theirs), wall(ours) / wall(theirs)
    return f"{a:.2f} x per CPU-second, {b:.2f} x per second", min(a, b) >= at_least


def _json(by: Rows) -> Iterator[Verdict]:
    ours = by.get(("json", "on"))
    structs, arrow = by.get(("json", "loop_structs")), by.get(("json", "loop_arrow"))
    if ours is None or structs is None or arrow is None:
        return
    what, where = "JSON -> Parquet, exactly once", "json"
    times = wall(ours) / wall(structs)
    yield Verdict(f"{what}: rate against the hand-written loop", "≥ 2 x", f"{times:.2f} x", times >= 2, where)
    times = cpu(ours) / max(cpu(structs), cpu(arrow))
    yield Verdict(f"{what}: per CPU-second against the better loop", "≥ 1 x", f"{times:.2f} x", times >= 1, where)
    quix = [row for key in ("quix_off", "quix_on") if (row := by.get(("json", key)))]
    if quix:
        told, kept = _times(ours, max(quix, key=cpu), 8)
        yield Verdict(f"{what}: against the better mode of Quix Streams", "≥ 8 x", told, kept, where)
    for key, name in {"quix_bytes": "Quix Streams handed pyarrow.json", "bytewax": "Bytewax"}.items():
        if row := by.get(("json", key)):
            yield Verdict(f"{what}: against {name}", "", _times(ours, row, 0)[0], None, where)
    if stock := by.get(("json", "stock")):
        told, kept = _times(ours, stock, 40)
        yield Verdict(f"{what}: against stock Faust", "≥ 40 x", told, kept, where)


def _outbox(by: Rows) -> Iterator[Verdict]:
    loop = by.get(("outbox", "loop"))
    for key, name in {"polling": "polling relay", "replication": "relay via replication"}.items():
        if loop is not None and (row := by.get(("outbox", key))):
            kept = cpu(row) / cpu(loop) >= 10
            what = f"outbox, {name}: per CPU-second against a loop event by event"
            yield Verdict(what, "≥ 10 x", _times(row, loop, 10)[0], kept, "outbox")


def _projection(by: Rows) -> Iterator[Verdict]:
    ours, loop = by.get(("projection", "on")), by.get(("projection", "loop"))
    if ours is not None and loop is not None:
        what = "projection, exactly once: per CPU-second against a loop event by event"
        yield Verdict(what, "≥ 10 x", _times(ours, loop, 10)[0], cpu(ours) / cpu(loop) >= 10, "projection")


def _alone(by: Rows) -> Iterator[Verdict]:
    for group, what in {
        "arrow": "Arrow -> Parquet, exactly once: of what the writer does alone",
        "clickhouse": "Arrow -> ClickHouse, exactly once: of what the inserts do alone",
    }.items():
        ours, alone = by.get((group, "on")), by.get((group, "alone"))
        if ours and alone:
            told, kept = _times(ours, alone, 0.8)
            yield Verdict(what, "≥ 0.8 x", told, kept, group)


def _cost(by: Rows) -> Iterator[Verdict]:
    for group, goal in {"json": 0.03, "arrow": None, "clickhouse": None, "table": None}.items():
        on, off = by.get((group, "on")), by.get((group, "off"))
        if not on or not off:
            continue
        pairs = [a.per_cpu_second / b.per_cpu_second for a, b in zip(on.results, off.results, strict=False)]
        cost = 1 - median(pairs)
        spread = f"{cost:.1%} per CPU-second (rounds: {1 - max(pairs):.1%} to {1 - min(pairs):.1%})"
        shown = "" if goal is None else f"≤ {goal:.0%}"
        yield Verdict("what exactly once costs", shown, spread, None if goal is None else cost <= goal, group)


def _table(by: Rows) -> Iterator[Verdict]:
    lines = [r for (group, key), r in by.items() if group == "table" and key.startswith("on")]
    for row in lines:
        if stock := by.get(("table", "stock")):
            told, kept = _times(row, stock, 100)
            yield Verdict(f"count per key, {row.name}: against stock Faust", "≥ 100 x", told, kept, "table")
        against = by.get(("table", "streams_out" if row.key.endswith("_out") else "streams"))
        if against:
            yield Verdict(
                f"count per key, {row.name}: against Kafka Streams", "", _times(row, against, 0)[0], None, "table"
            )


def _restore(by: Rows) -> Iterator[Verdict]:
    if row := by.get(("restore", "on")):
        told = f"{wall(row) / 1000:,.0f} k/s"
        yield Verdict(f"restoring {row.results[0].rows:,} keys", "≥ 300 k/s", told, wall(row) >= 300_000, "restore")


def _latency(by: Rows) -> Iterator[Verdict]:
    if row := by.get(("latency", "on")):
        for name, goal in {"p50": 150, "p99": 500}.items():
            found = median(r.extra[f"{name}_ms"] for r in row.results)
            yield Verdict(
                f"latency at 10 k records/s, {name}", f"≤ {goal} ms", f"{found:.0f} ms", found <= goal, "latency"
            )


def _memory(by: Rows) -> Iterator[Verdict]:
    for (group, _key), row in by.items():
        if group == "memory":
            x = row.results[-1].extra
            kept = x["highest"] <= 1.1 and x["lowest"] >= 0.9
            told = f"{x['lowest'] - 1:+.0%} to {x['highest'] - 1:+.0%} of the median"
            yield Verdict(f"resident memory is flat: {row.name}", "within 10 %", told, kept, "memory")


def _growth(by: Rows) -> Iterator[Verdict]:
    one_size: Callable[[str], bool] = lambda key: key.startswith("p")  # noqa: E731
    one_spread: Callable[[str], bool] = lambda key: key.startswith("n") or key == "p4"  # noqa: E731
    for what, belongs in {"partitions": one_size, "records": one_spread}.items():
        rows = [r for (group, key), r in by.items() if group == "growth" and belongs(key)]
        if len(rows) > 1:
            low, high = min(rows, key=cpu), max(rows, key=cpu)
            share = cpu(low) / cpu(high)
            told = f"lowest is {share:.2f} of highest ({low.name} of {high.name})"
            yield Verdict(f"growth: rows per CPU-second by {what}", "within 10 %", told, share >= 0.9, "growth")
