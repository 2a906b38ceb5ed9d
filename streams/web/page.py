"""The status page: one HTML document without anything from elsewhere, made anew by each look at it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from html import escape
from typing import Any

REFRESH = 5
"""Seconds until the page loads itself again."""
SHOWN = 50
"""Partitions shown: those that lag most."""
NAMED = 8
"""Instances of a batch that are named."""

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--text:#1c2330;--dim:#5d6779;--line:#dfe3ea;--good:#17784a;
--warn:#9a5b00;--bad:#b3261e;--bar:#3a6ff0;--track:#e4e8f0}
@media (prefers-color-scheme:dark){:root{--bg:#12151b;--card:#1a1f28;--text:#e4e8ef;--dim:#97a1b3;--line:#2c3340;
--good:#56c98d;--warn:#e5a94d;--bad:#ff8a80;--bar:#6f97ff;--track:#2a3140}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main,header{max-width:72rem;margin:0 auto;padding:1rem}
header{padding-bottom:0}
h1{font-size:1.25rem;margin:0}
h2{font-size:1rem;margin:0 0 .5rem}
p{margin:.25rem 0}
.dim{color:var(--dim)}
.good{color:var(--good)}.warn{color:var(--warn)}.bad{color:var(--bad)}
.pill{display:inline-block;padding:.05rem .6rem;border:1px solid currentColor;border-radius:1rem;font-weight:600}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.75rem;margin:0 0 .75rem}
.tile,section{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.75rem 1rem}
.tile b{display:block;font-size:1.35rem;font-weight:600;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
section{margin:0 0 .75rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.3rem .75rem .3rem 0;border-top:1px solid var(--line);vertical-align:top}
th{font-weight:500;color:var(--dim);border-top:0;white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.whole{white-space:nowrap}
td.name{overflow-wrap:anywhere;min-width:9rem}
progress{appearance:none;width:6rem;height:.5rem;border:0;border-radius:.25rem;background:var(--track);overflow:hidden}
progress::-webkit-progress-bar{background:var(--track)}
progress::-webkit-progress-value{background:var(--bar)}
progress::-moz-progress-bar{background:var(--bar)}
@media (max-width:40rem){
main,header{padding:.75rem}
table,tbody,tr,td{display:block}
thead{display:none}
tr{border-top:1px solid var(--line);padding:.4rem 0}
tr:first-child{border-top:0}
td,td.n{border:0;padding:.05rem 0;display:flex;justify-content:space-between;gap:1rem;text-align:right;
white-space:normal;overflow-wrap:anywhere}
td::before{content:attr(data-name);color:var(--dim);flex:none;text-align:left}
td:empty{display:none}
}
"""

_STATE = {"parked": "bad", "retrying": "warn", "failed": "bad", "running": ""}
_EXPLAINED = {
    "reading": "waiting for enough records, or for any",
    "planned": "the range is being put on record",
    "writing": "agents and sinks are at work",
    "written": "waiting for the commit",
    "retrying": "a sink call is being retried",
    "parked": "ended its worker too often: see the runbook",
}


def page(status: dict[str, Any]) -> str:
    """The page of a `/statusz`."""
    state = "ready" if status["ready"] else "not ready"
    title = f"{status['slot']} · {state} · millstream"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="{REFRESH}"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body>"
        f"{_header(status, state)}<main>{_tiles(status)}{_batches(status)}{_partitions(status)}"
        f"{_sinks(status)}{_tables(status)}{_footer(status)}</main></body></html>"
    )


def _header(status: dict[str, Any], state: str) -> str:
    kind = "good" if status["ready"] else "bad"
    reasons = "".join(f'<p class="bad">{escape(r["reason"])}: {escape(r["text"])}</p>' for r in status["reasons"])
    return (
        f'<header><h1>Worker {escape(status["slot"])} <span class="pill {kind}">{state}</span></h1>{reasons}'
        f'<p class="dim">group {escape(status["group"])} · streams {escape(", ".join(status["streams"]))} · '
        f"host {escape(status['host'])}, process {status['pid']} · millstream {escape(status['version'])}</p></header>"
    )


def _tiles(status: dict[str, Any]) -> str:
    partitions, now = status["partitions"], status["now"]
    since = status["last_commit"]
    worst = max((p["lag_seconds"] for p in partitions), default=0.0)
    tiles = [
        ("partitions", f"{status['assigned']:,}", f"generation {status['generation']}"),
        (
            "records behind",
            f"{sum(p['lag'] for p in partitions):,}",
            f"oldest {_span(worst)}" if worst else "up to date",
        ),
        ("last commit", "none yet" if since is None else f"{_span(now - since)} ago", ""),
        ("up", _span(now - status["started"]), f"since {_clock(status['started'])}"),
    ]
    cells = "".join(
        f'<div class="tile"><span class="dim">{name}</span><b>{escape(value)}</b>'
        f'<span class="dim">{escape(more)}</span></div>'
        for name, value, more in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _batches(status: dict[str, Any]) -> str:
    if "batches" not in status:
        return ""
    rows = []
    for b in status["batches"]:
        done = (
            f'<span class="whole"><progress max="{max(1, b["instances"])}" value="{b["done"]}"></progress> '
            f"{b['done']} of {b['instances']}</span>"
        )
        open_ones = [*b["failed_instances"], *b["missing_instances"]]
        missing = ", ".join(map(escape, open_ones[:NAMED]))
        if (more := b["failed"] + b["missing"] - min(len(open_ones), NAMED)) > 0:
            missing += f" and {more:,} more"
        if b["reason"]:
            missing += f'<div class="bad">{escape(b["reason"])}</div>'
        rows.append([
            escape(b["cluster"]), escape(b["batch"].replace(".000000000Z", "Z")), _pill(b["state"]), done,
            f"{b['records']:,}",
            f"{_span(b['quiet_seconds'])} ago", missing or ("still at work" if b["running"] else ""),
        ])  # fmt: skip
    heads = ["cluster", "batch", "state", "instances done", "records#", "last news#", "missing, or why"]
    return _section("Batches under way", heads, rows, "No batch is under way in the tables of this worker.")


def _partitions(status: dict[str, Any]) -> str:
    rows = []
    for p in status["partitions"][:SHOWN]:
        chunk = p["chunk"]
        work = "" if chunk is None else f"{chunk['first']:,}…{chunk['last']:,}"
        work += " (again)" if chunk and chunk["replayed"] else ""
        rows.append([
            escape(p["topic"]), str(p["partition"]), _pill(p["state"], _EXPLAINED.get(p["state"], "")),
            _span(p["state_seconds"]) if p["state"] != "reading" or p["buffered"] else "",
            f"{p['offset']:,}", "" if p["end"] is None else f"{p['end']:,}", f"{p['lag']:,}",
            _span(p["lag_seconds"]) if p["lag"] else "", work,
        ])  # fmt: skip
    heads = ["topic", "partition#", "state", "for#", "committed#", "end#", "behind#", "oldest#", "chunk"]
    rest = status["assigned"] - len(rows)
    note = f'<p class="dim">and {rest:,} more, which lag no more than these</p>' if rest > 0 else ""
    return _section("Partitions", heads, rows, "No partition is assigned, or they are being loaded.", note)


def _sinks(status: dict[str, Any]) -> str:
    rows = []
    for s in status["sinks"]:
        error, failing = s["last_error"], s["failing_seconds"]
        told = (
            f'<span class="warn">failing for {_span(failing)}</span>' if failing else '<span class="good">fine</span>'
        )
        last = ""
        if error is not None:
            at = f"{_span(status['now'] - error['at'])} ago"
            last = f"{escape(error['operation'])}, {at}: {escape(error['error'])}"
        rows.append([escape(s["sink"]), told, last])
    return _section("Sinks", ["sink", "now", "last error"], rows, "This worker has no sinks.")


def _tables(status: dict[str, Any]) -> str:
    rows = [
        [escape(t["table"]), str(t["partitions"]), f"{t['keys']:,}", _size(t["bytes"]),
         f"{t['restore_left']:,}" if t["restore_left"] else ""]
        for t in status["tables"]
    ]  # fmt: skip
    return (
        _section("Tables", ["table", "partitions#", "keys, about#", "size#", "left to load#"], rows, "") if rows else ""
    )


def _footer(status: dict[str, Any]) -> str:
    return (
        f'<p class="dim">As of {_clock(status["now"])} UTC; loads itself again every {REFRESH} s. The same as JSON: '
        f'<a href="/statusz">/statusz</a>, for Prometheus: <a href="/metrics">/metrics</a>, health: '
        f'<a href="/livez">/livez</a>, <a href="/readyz">/readyz</a>.</p>'
    )


def _section(title: str, heads: list[str], rows: Iterable[list[str]], empty: str, note: str = "") -> str:
    """A table; heads that end in # are of numbers. Cells are HTML already."""
    names = [h.rstrip("#") for h in heads]
    kinds = [' class="n"' if h.endswith("#") else "" for h in heads]
    body = "".join(
        "<tr>" + "".join(f'<td{kind or (" class=name" if i == 0 else "")} data-name="{name}">{cell}</td>'
                         for i, (name, kind, cell) in enumerate(zip(names, kinds, row, strict=True))) + "</tr>"
        for row in rows
    )  # fmt: skip
    if not body:
        return f'<section><h2>{title}</h2><p class="dim">{empty}</p></section>'
    head = "".join(f"<th{kind}>{name}</th>" for name, kind in zip(names, kinds, strict=True))
    return (
        f'<section><h2>{title}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}</section>"
    )


def _pill(state: str, why: str = "") -> str:
    return f'<span class="{_STATE.get(state, "dim")}" title="{escape(why)}">{escape(state)}</span>'


def _span(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min`, `5 h`, `2 d`."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _size(size: int) -> str:
    """`3.1 MiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))
