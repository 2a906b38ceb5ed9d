"""The tables of docs/metrics.md, made from the declarations in millstream/metrics.py.

`python -m tests.unit.docs.metrics_table` writes them anew between the marks.
"""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from millstream import metrics

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"
BEGIN, END = "<!-- metrics: begin -->", "<!-- metrics: end -->"
UNITS = {
    "timestamp_seconds": "Unix seconds",
    "seconds": "seconds",
    "bytes": "bytes",
    "records": "records",
    "rows": "rows",
    "events": "events",
}


def groups() -> dict[str, list[str]]:
    """Heading of metrics.py -> names of the constants below it."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    known = metrics.declared()
    for line in Path(metrics.__file__).read_text("utf-8").splitlines():
        if heading := re.fullmatch(r"# --- (.*)", line):
            names = found.setdefault(heading[1], [])
        elif (constant := re.match(r"([A-Z_]+) = ", line)) and constant[1] in known:
            names.append(constant[1])
    return found


def shown_name(metric: MetricWrapperBase) -> str:
    """As it stands in a query; a histogram's samples have `_bucket`, `_sum` and `_count` behind it."""
    return metric._name + {"counter": "_total", "info": "_info"}.get(str(metric._type), "")


def unit(metric: MetricWrapperBase) -> str:
    """By the name's end."""
    if metric._type == "info":
        return ""
    return next((text for end, text in UNITS.items() if metric._name.endswith(f"_{end}")), "")


def table() -> str:
    """All metrics, one table per group."""
    parts = []
    for heading, names in groups().items():
        parts += [f"### {heading}\n", "| name | type | labels | unit | |", "|---|---|---|---|---|"]
        for name in names:
            m = metrics.declared()[name]
            labels = ", ".join(f"`{label}`" for label in m._labelnames) or ("`version`" if m._type == "info" else "")
            parts.append(f"| `{shown_name(m)}` | {m._type} | {labels} | {unit(m)} | {m._documentation} |")
        parts.append("")
    return "\n".join(parts)


def written() -> str:
    """What stands between the marks now."""
    return DOCUMENT.read_text("utf-8").partition(BEGIN)[2].partition(END)[0].strip()


if __name__ == "__main__":
    text = DOCUMENT.read_text("utf-8")
    head, _, rest = text.partition(BEGIN)
    DOCUMENT.write_text(f"{head}{BEGIN}\n\n{table()}\n{END}{rest.partition(END)[2]}", "utf-8")
