"""Resident memory over time: a backlog drains, and once the sink stands still in the middle of it."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from bench import data
from bench.runner import Contender, ContenderError, Running, app_id
from bench.session import Bench, worker
from bench.verify import check_files

SECONDS = (330, 0)
BACKLOG = 20
"""Times the records of the other groups."""
WARM_UP = 0.1
"""Share of the time of draining that is not judged: until all buffers have been full once."""
WINDOWS = 20
"""Memory is judged by medians over so many windows: what one chunk takes comes and goes."""


def run(bench: Bench) -> None:
    """Once each, not in rounds: what is measured is in the course of it."""
    n, pause = bench.records * BACKLOG, bench.options.stop_seconds
    bench.title("memory", f"Resident memory while {n:,} JSON records drain into Parquet, exactly once")
    data.fill(bench.servers, "backlog", data.backlog(n))
    stop = bench.directory / "stop"
    contender = Contender("drain", "a backlog drains", worker("json"), "backlog", n)
    _drain(bench, contender, None, 0.0)
    stopped = Contender(
        "stopped", f"sink stopped for {pause:g} s", worker("json"), "backlog", n, {"BENCH_STOP": str(stop)}
    )
    _drain(bench, stopped, stop, pause)
    data.drop(bench.servers, "backlog")


def _drain(bench: Bench, contender: Contender, stop: Path | None, pause: float) -> None:
    where, app = bench.directory / f"memory-{contender.key}", app_id(contender)
    samples: list[tuple[float, int]] = []
    with Running(contender, bench.servers, where, app) as running:
        running.wait(running.started, "start")
        began = time.monotonic()

        def sampled() -> bool:
            at = time.monotonic() - began
            if not samples or at - samples[-1][0] >= 0.25:
                samples.append((at, running.tree.rss))
            return running.done()

        def out_of_order() -> bool:
            return sampled() or time.monotonic() - began >= until

        stood: tuple[float, float] | None = None
        if stop is not None:
            until = _third(bench)
            running.wait(out_of_order, "result")
            stop.touch()
            until = time.monotonic() - began + pause
            running.wait(out_of_order, "result", pause + 60)
            stop.unlink()
            if running.done():
                raise ContenderError("the backlog drained although the sink stood still")
            stood = (until - pause, until)
        running.wait(sampled, "result")
        result = running.result(**judge(samples, stood))
    result = replace(result, bytes_out=bench.bytes_out(where, app))
    check_files(bench.servers, contender.topic, where / "sink")
    bench.add("memory", contender.key, contender.name, result)
    shutil.rmtree(where)


def _third(bench: Bench) -> float:
    """A third of the time that draining took without a stop."""
    return next(r.results[-1].wall for r in bench.rows if (r.group, r.key) == ("memory", "drain")) / 3


def judge(samples: list[tuple[float, int]], stood: tuple[float, float] | None) -> dict[str, object]:
    """How flat it is: highest and lowest median of a window against the median of all; the course, in MiB."""
    end = samples[-1][0]
    judged = [(at, rss) for at, rss in samples if at >= end * WARM_UP]
    width = (end - judged[0][0]) / WINDOWS or 1.0
    windows: dict[int, list[int]] = {}
    for at, rss in judged:
        windows.setdefault(min(int((at - judged[0][0]) / width), WINDOWS - 1), []).append(rss)
    middle = median(rss for _, rss in judged)
    medians = [median(w) for w in windows.values()]
    quarter = max(1, len(medians) // 4)
    return {
        "median_mib": round(middle / 2**20),
        "highest": round(max(medians) / middle, 3),
        "lowest": round(min(medians) / middle, 3),
        "grown": round(median(medians[-quarter:]) / median(medians[:quarter]), 3),
        "stood": stood and [round(at, 1) for at in stood],
        "course": [[round(at, 1), rss >> 20] for at, rss in samples],
    }
