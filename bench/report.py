"""The table in docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from bench.runner import Result

BEGIN, END = "<!-- results: written by `make bench` -->", "<!-- end of results -->"


@dataclass(slots=True)
class Row:
    """All results of one contender."""

    group: str
    name: str
    results: list[Result] = field(default_factory=list)


def machine() -> dict[str, str]:
    """What it ran on."""
    cpu = next((x.partition(":")[2].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), "unknown")
    memory = next((x.split()[1] for x in _lines("/proc/meminfo") if x.startswith("MemTotal")), "0")
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    packages = ("faust-streaming", "aiokafka", "confluent-kafka", "pyarrow", "msgspec")
    return {
        "cpu": f"{os.cpu_count()} x {cpu}",
        "memory": f"{int(memory) >> 20} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{p} {version(p)}" for p in packages),
        "load": f"{load} at the end (1, 5 and 15 minutes)",
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def tables(rows: list[Row]) -> str:
    """A Markdown table per group: medians, the spread, and the ratio to the group's first contender."""
    text: list[str] = []
    group = ""
    base = 0.0
    for row in rows:
        per_cpu = [r.per_cpu_second for r in row.results]
        if row.group != group:
            group, base = row.group, median(per_cpu)
            text += [
                "",
                f"### {group}",
                "",
                "| | rows | rows per CPU-second (lowest..highest) | ratio | rows per second | peak RSS |",
            ]
            text += ["|---|--:|--:|--:|--:|--:|"]
        wall, rss = median(r.per_second for r in row.results), max(r.rss for r in row.results)
        spread = f"**{_k(median(per_cpu))}** ({_k(min(per_cpu))}..{_k(max(per_cpu))})"
        cells = [row.name, f"{row.results[0].rows:,}", spread, f"{median(per_cpu) / base:.2f}", _k(wall)]
        text.append(f"| {' | '.join(cells)} | {f'{rss >> 20} MiB' if rss else 'not measured'} |")
        if parts := row.results[-1].processes:
            told = "; ".join(f"{n} {p['cpu']:.1f} CPU-s, {p['rss'] >> 20} MiB" for n, p in parts.items())
            text.append(f"| ↳ {told} | | | | | |")
    return "\n".join(text).strip()


def _k(value: float) -> str:
    return f"{value / 1000:,.0f} k" if value >= 10_000 else f"{value:,.0f}"


def update_docs(path: Path, rows: list[Row], found: dict[str, Any]) -> None:
    """Put the tables between the marks."""
    old = path.read_text("utf-8")
    before, rest = old.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    about = "; ".join(f"{k}: {v}" for k, v in found["machine"].items())
    rounds = f"{found['rounds']} rounds, {found['seconds']} s"
    failed = f" Groups that failed: {', '.join(found['failed'])}." if found["failed"] else ""
    path.write_text(
        f"{before}{BEGIN}\n{found['at']}, {rounds}. {about}.{failed}\n\n{tables(rows)}\n{END}{after}", "utf-8"
    )
