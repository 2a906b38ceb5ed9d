"""What an expression asks for, held against the declarations in millstream/metrics.py."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import promql_parser as promql

from millstream import metrics

TARGET = {"job", "instance", "namespace", "pod", "service"}
"""Labels that the scrape gives to every series."""
FOREIGN = {
    "up": set(),
    "ALERTS": {"alertname", "alertstate", "severity", "component"},
    "process_start_time_seconds": set(),
    "process_resident_memory_bytes": set(),
    "process_cpu_seconds_total": set(),
    "process_open_fds": set(),
}  # fmt: skip
"""What Prometheus itself and its client for Python give."""
_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "info": ("_info",), "histogram": ("_bucket", "_sum", "_count")}


@cache
def series() -> dict[str, set[str]]:
    """Name of every series that can be asked for, with its labels."""
    found = {name: set(labels) for name, labels in FOREIGN.items()}
    for metric in metrics.declared().values():
        for suffix in _SUFFIXES[metric._type]:
            own = {"le"} if suffix == "_bucket" else {"version"} if suffix == "_info" else set()
            found[metric._name + suffix] = set(metric._labelnames) | own
    return found


def selectors(text: str) -> Iterator[tuple[str, list[Any]]]:
    """(name, matchers) of every selector, those in ranges too."""
    for node in _nodes(text):
        if isinstance(node, promql.VectorSelector):
            yield node.name, node.matchers.matchers


def problems(text: str) -> list[str]:
    """What is wrong with an expression: unknown series, labels that they do not have."""
    found, available = [], set(TARGET)
    for name, matchers in selectors(text):
        if name not in series():
            found.append(f"{name} is no series of millstream/metrics.py")
            continue
        available |= series()[name]
        found += [f"{name} has no label {m.name}" for m in matchers if m.name not in series()[name] | TARGET]
    for node in _nodes(text):
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            inner = {label for name, _ in selectors(node.expr.prettify()) for label in series().get(name, set())}
            found += [f"by ({label}): nothing below has it" for label in set(node.modifier.labels) - inner - TARGET]
    return found


def counters_without_rate(text: str) -> list[str]:
    """Counters that are asked for as they are: meaningless but for `unless … offset` (a series that is new)."""
    nodes = _nodes(text)  # what stands in a range is visited once more as a selector
    looked = Counter(node.name for node in nodes if isinstance(node, promql.VectorSelector))
    ranged = Counter(node.vector_selector.name for node in nodes if isinstance(node, promql.MatrixSelector))
    return sorted(name for name in looked - ranged if name.endswith("_total") and f"{name} offset" not in text)


def labels_of(text: str) -> set[str]:
    """Labels that the answer may have."""
    top = promql.parse(text)
    if isinstance(top, promql.AggregateExpr) and not text.startswith("topk"):  # which keeps all of them
        return set(top.modifier.labels) if top.modifier is not None else set()
    inner = [n for n in _nodes(text) if isinstance(n, promql.AggregateExpr) and n.modifier is not None]
    if inner:
        return {label for n in inner for label in n.modifier.labels} - (
            {"le"} if "histogram_quantile" in text else set()
        )
    return TARGET | {label for name, _ in selectors(text) for label in series().get(name, set())}


def plain(text: str) -> str:
    """An expression of a dashboard, with Grafana's variables filled in."""
    return re.sub(r"\$\w+", ".*", re.sub(r"\$__(rate_interval|interval|range)", "1m", text))


def _nodes(text: str) -> list[Any]:
    found: list[Any] = []
    promql.walk(promql.parse(text), pre_visit=found.append)
    return found
