"""Results files into the tables and pictures of docs/benchmarks.md.

python -m bench.report RESULTS.json...        of a group that several files have, the last one's results count
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from bench import targets
from bench.groups import NAMES
from bench.runner import ROOT, Result
from bench.session import OTHERS, Row

BEGIN, END = "<!-- results: written by `make bench` -->", "<!-- end of results -->"
DOCS = ROOT / "docs" / "benchmarks.md"
IMAGES = ROOT / "docs" / "img"


_VERSIONS = """
from importlib.metadata import version
print(", ".join(f"{p} {version(p)}" for p in ("quixstreams", "bytewax")))
"""


def machine() -> dict[str, str]:
    """What it ran on."""
    cpu = next((x.partition(":")[2].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), "unknown")
    memory = next((x.split()[1] for x in _lines("/proc/meminfo") if x.startswith("MemTotal")), "0")
    packages = ("faust-streaming", "aiokafka", "confluent-kafka", "pyarrow", "msgspec", "chdb")
    found = [f"{p} {version(p)}" for p in packages]
    if OTHERS.exists():
        told = subprocess.run([str(OTHERS), "-c", _VERSIONS], capture_output=True, text=True, check=True)
        found.append(told.stdout.strip())
    return {
        "cpu": f"{os.cpu_count()} x {cpu}",
        "memory": f"{int(memory) >> 20} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(found),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def save(path: Path, about: dict[str, Any], rows: list[Row]) -> None:
    """One line per run of a contender."""
    lines = [
        json.dumps({"group": r.group, "key": r.key, "name": r.name, **asdict(result)})
        for r in rows
        for result in r.results
    ]
    head = json.dumps(about, indent=1)[:-2]
    path.write_text(head + ',\n "results": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n")


def load(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """What `save` wrote."""
    about = json.loads(path.read_text())
    rows: dict[tuple[str, str], Row] = {}
    for found in about.pop("results"):
        group, key, name = (found.pop(x) for x in ("group", "key", "name"))
        rows.setdefault((group, key), Row(group, key, name)).results.append(Result(**found))
    return about, list(rows.values())


# ---------------------------------------------------------------------- tables
def speed(rows: list[Row]) -> list[str]:
    """Medians, the spread, and ratios to the group's first contender."""
    base_cpu, base_wall = (median(getattr(r, x) for r in rows[0].results) for x in ("per_cpu_second", "per_second"))
    text = [
        "| | rows | rows per CPU-second (lowest..highest) | ratio | rows per second | ratio | peak RSS | bytes out |"
    ]
    text += ["|---|--:|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        per_cpu = [r.per_cpu_second for r in row.results]
        wall, rss = median(r.per_second for r in row.results), max(r.rss for r in row.results)
        cells = [
            row.name,
            f"{row.results[0].rows:,}",
            f"**{_k(median(per_cpu))}** ({_k(min(per_cpu))}..{_k(max(per_cpu))})",
            f"{median(per_cpu) / base_cpu:.2f}",
            _k(wall),
            f"{wall / base_wall:.2f}",
            f"{rss >> 20} MiB",
            f"{median(r.bytes_out for r in row.results) / 2**20:,.1f} MiB",
        ]
        text.append(f"| {' | '.join(cells)} |")
        if parts := row.results[-1].processes:
            told = "; ".join(f"{n} {p['cpu']:.1f} CPU-s, {p['rss'] >> 20} MiB" for n, p in parts.items())
            text.append(f"| ↳ {told} | | | | | | | |")
    return text


def latency(rows: list[Row]) -> list[str]:
    """Medians of each round's percentiles; the worst round's p99 beside them."""
    names = ("p50_ms", "p90_ms", "p99_ms", "p99.9_ms", "p100_ms")
    text = ["| | p50 | p90 | p99 | p99.9 | highest | p99 of the worst round | records/s | CPU | peak RSS |"]
    text += ["|---" + "|--:" * 9 + "|"]
    for row in rows:
        cells = [f"{median(r.extra[n] for r in row.results):.0f} ms" for n in names]
        cells.append(f"{max(r.extra['p99_ms'] for r in row.results):.0f} ms")
        cells.append(f"{median(r.extra['pace'] for r in row.results):,.0f}")
        cells.append(f"{median(r.cpu / r.wall for r in row.results):.0%} of a core")
        text.append(f"| {row.name} | {' | '.join(cells)} | {max(r.rss for r in row.results) >> 20} MiB |")
    return text


def memory(rows: list[Row]) -> list[str]:
    """How flat."""
    text = ["| | records | time | median RSS | highest window | lowest window | last quarter / first | peak RSS |"]
    text += ["|---" + "|--:" * 7 + "|"]
    for row in rows:
        for r in row.results:
            x = r.extra
            shares = " | ".join(f"{x[n] - 1:+.0%}" for n in ("highest", "lowest"))
            text.append(
                f"| {row.name} | {r.rows:,} | {r.wall:.0f} s | {x['median_mib']} MiB | {shares} | {x['grown']:.2f} |"
                f" {r.rss >> 20} MiB |"
            )
    return text


LAYOUTS = {"latency": latency, "memory": memory}


def _k(value: float) -> str:
    return f"{value / 1000:,.0f} k" if value >= 10_000 else f"{value:,.0f}"


def page(merged: dict[str, tuple[dict[str, Any], list[Row]]]) -> str:
    """Everything between the marks: group -> (about its run, its rows)."""
    rows = [row for _about, found in merged.values() for row in found]
    text = [*_abouts(merged), "", "### Targets", "", *targets.table(rows), ""]
    text += ["![rows per CPU-second of every contender, group by group](img/throughput.svg)", ""]
    for group, (about, found) in merged.items():
        text += [f"### `{group}`: {about['titles'][group]}", "", *LAYOUTS.get(group, speed)(found), ""]
        if group == "latency":
            text += ["![latency, cumulative](img/latency.svg)", ""]
        if group == "memory":
            text += ["![resident memory over time](img/memory.svg)", ""]
    return "\n".join(text).rstrip()


def _abouts(merged: dict[str, tuple[dict[str, Any], list[Row]]]) -> list[str]:
    """A line per run that something stems from."""
    text, told = [], []
    for about, _rows in merged.values():
        if about in told:
            continue
        told.append(about)
        groups = ", ".join(g for g, (a, _) in merged.items() if a == about)
        machine = "; ".join(f"{k}: {v}" for k, v in about["machine"].items())
        text.append(
            f"{about['at']}, commit {about['commit']}, {about['rounds']} rounds of {about['records']:,} records,"
            f" {about['seconds']} s ({groups}); broker and contenders {about['pinned']}; load {about['load']}"
            f" at the end (1, 5 and 15 minutes). {machine}."
        )
        text += [f"Left out: {x}." for x in about["left_out"]] + [f"**Failed**: {x}." for x in about["failed"]]
    return text


def update(paths: list[Path]) -> None:
    """Put tables and pictures into the documents."""
    merged: dict[str, tuple[dict[str, Any], list[Row]]] = {}
    for path in paths:
        about, rows = load(path)
        merged |= {row.group: (about, [r for r in rows if r.group == row.group]) for row in rows}
    merged = {name: merged[name] for name in NAMES if name in merged}
    before, rest = DOCS.read_text("utf-8").split(BEGIN, 1)
    DOCS.write_text(f"{before}{BEGIN}\n{page(merged)}\n{END}{rest.split(END, 1)[1]}", "utf-8")
    IMAGES.mkdir(exist_ok=True)
    draw = [str(OTHERS if OTHERS.exists() else sys.executable), "-m", "bench.plots", str(IMAGES), *map(str, paths)]
    subprocess.run(draw, cwd=ROOT, check=True)


if __name__ == "__main__":
    update([Path(p) for p in sys.argv[1:]])
