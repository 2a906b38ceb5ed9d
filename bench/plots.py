"""The pictures of docs/benchmarks.md, drawn by bench/.venv: python -m bench.plots DIRECTORY RESULTS.json..."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

TEXT, GRID = "#848d97", "#848d9755"
"""Greys that can be read on white and on black: the pictures have no ground of their own."""
OURS, OURS_OFF, THEIRS, STOCK = "#2f81f7", "#79b0f5", "#c98a2b", "#b05c5c"
SPEED = ("json", "arrow", "clickhouse", "table", "restore", "job", "growth")

mpl.rcParams.update(
    {
        "svg.hashsalt": "millstream",  # the same results give the same file
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), TEXT),
        "grid.color": GRID,
    }
)

Found = list[dict[str, Any]]
"""Runs of contenders, as in a results file."""


def main(directory: Path, paths: list[Path], kind: str = "svg") -> None:
    """Draw what the files have results for; of a group that several have, the last one's."""
    groups: dict[str, Found] = {}
    titles: dict[str, str] = {}
    for path in paths:
        about = json.loads(path.read_text())
        titles |= about["titles"]
        names = {r["group"] for r in about["results"]}
        groups |= {g: [r for r in about["results"] if r["group"] == g] for g in names}
    _throughput({g: groups[g] for g in SPEED if g in groups}, titles, directory / f"throughput.{kind}")
    if "latency" in groups:
        _latency(groups["latency"], directory / f"latency.{kind}")
    if "memory" in groups:
        _memory(groups["memory"], directory / f"memory.{kind}")


def _save(figure: Any, path: Path) -> None:
    about = {"metadata": {"Date": None}} if path.suffix == ".svg" else {"dpi": 110}
    figure.savefig(path, bbox_inches="tight", **about)
    plt.close(figure)


def _by_key(found: Found) -> dict[str, Found]:
    lines: dict[str, Found] = {}
    for result in found:
        lines.setdefault(result["key"], []).append(result)
    return lines


def _color(group: str, result: dict[str, Any]) -> str:
    if group in {"job", "growth"} or result["key"].startswith("on"):
        return OURS
    return {"off": OURS_OFF, "stock": STOCK}.get(result["key"], THEIRS)


def _throughput(groups: dict[str, Found], titles: dict[str, str], path: Path) -> None:
    """Bars of rows per CPU-second, each group on a scale of its own; the lines show lowest and highest round."""
    if not groups:
        return
    sizes = [len(_by_key(found)) for found in groups.values()]
    figure, all_axes = plt.subplots(
        len(groups),
        figsize=(8.6, 0.27 * sum(sizes) + 0.62 * len(sizes)),
        height_ratios=[n + 0.4 for n in sizes],
        squeeze=False,
    )
    for axes, (group, found) in zip(all_axes[:, 0], groups.items(), strict=True):
        lines = list(_by_key(found).values())
        rates = [[r["rows"] / r["cpu"] for r in line] for line in lines]
        middles = [median(r) for r in rates]
        spread = [
            [m - min(r) for m, r in zip(middles, rates, strict=True)],
            [max(r) - m for m, r in zip(middles, rates, strict=True)],
        ]
        axes.barh(
            range(len(lines)),
            middles,
            color=[_color(group, line[0]) for line in lines],
            height=0.72,
            xerr=spread,
            error_kw={"ecolor": TEXT, "elinewidth": 1},
        )
        top = max(max(r) for r in rates)
        for n, (middle, each) in enumerate(zip(middles, rates, strict=True)):
            told = f"{middle / 1000:,.0f} k" if middle >= 10_000 else f"{middle:,.0f}"
            axes.text(max(each) + top * 0.012, n, f"{told}   {middle / middles[0]:.2f} x", va="center", fontsize=8)
        axes.set_yticks(range(len(lines)), [line[0]["name"] for line in lines])
        axes.set_xlim(0, top * 1.2)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(left=False)
        axes.invert_yaxis()
        axes.set_title(titles[group], loc="left", fontsize=9, fontweight="bold", color=TEXT)
    figure.suptitle(
        "rows per CPU-second, and ratio to the first line of the group", x=0.02, y=1.0, ha="left", fontsize=9
    )
    figure.tight_layout(h_pad=0.9)
    _save(figure, path)


def _latency(found: Found, path: Path) -> None:
    """Share of records that a reader has, by time since they were produced."""
    figure, axes = plt.subplots(figsize=(7.4, 3.2))
    for key, line in _by_key(found).items():
        color = OURS if key == "on" else THEIRS
        shares = [n / 2 for n in range(len(line[0]["extra"]["curve"]))]
        for n, result in enumerate(line):
            label = line[0]["name"] if n == 0 else None
            axes.plot(result["extra"]["curve"], shares, color=color, linewidth=1.3, alpha=0.75, label=label)
    for at, share, told in ((150, 50, "p50 ≤ 150 ms"), (500, 99, "p99 ≤ 500 ms")):
        axes.plot(at, share, marker="v", color=STOCK)
        axes.annotate(told, (at, share), xytext=(7, -9), textcoords="offset points", color=STOCK, fontsize=8)
    axes.set_xlabel("milliseconds from produced to read out of the sink")
    axes.set_ylabel("% of records")
    axes.set_xlim(0, max(560, *(r["extra"]["p99_ms"] * 1.1 for r in found)))
    axes.set_ylim(0, 101)
    axes.grid(linewidth=0.6)
    axes.legend(frameon=False, loc="lower right", labelcolor=TEXT)
    _save(figure, path)


def _memory(found: Found, path: Path) -> None:
    """Resident memory in the course of each run, with the band of 10 % around its median."""
    figure, all_axes = plt.subplots(len(found), figsize=(7.4, 2.1 * len(found)), squeeze=False)
    for axes, result in zip(all_axes[:, 0], found, strict=True):
        x = result["extra"]
        # 0 in results before 2026-11-23 13:00: a thread ended while its process was looked at, which was then left out.
        times, sizes = zip(*(sample for sample in x["course"] if sample[1]), strict=True)
        middle = x["median_mib"]
        axes.axhspan(middle * 0.9, middle * 1.1, color=GRID, linewidth=0)
        axes.axhline(middle, color=TEXT, linewidth=0.7)
        axes.plot(times, sizes, color=OURS, linewidth=0.9)
        if x["stood"]:
            axes.axvspan(*x["stood"], color=STOCK, alpha=0.25, linewidth=0)
            axes.text(sum(x["stood"]) / 2, max(sizes) * 1.02, "sink stopped", ha="center", color=STOCK, fontsize=8)
        axes.set_title(f"{result['name']} ({result['rows']:,} records)", loc="left", fontsize=9, color=TEXT)
        axes.set_ylim(0, max(sizes) * 1.15)
        axes.set_xlim(0, times[-1])
        axes.set_ylabel("MiB")
    all_axes[-1, 0].set_xlabel("seconds; grey: the median, and 10 % around it")
    figure.tight_layout()
    _save(figure, path)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        [Path(p) for p in sys.argv[2:] if not p.startswith("--")],
        "png" if "--png" in sys.argv else "svg",
    )
