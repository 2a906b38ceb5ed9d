"""PromQL out of the metric objects themselves: what is not declared in millstream/metrics.py cannot be asked for."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

WORKERS = 'job=~"$job",instance=~"$worker"'
"""What every dashboard's variables choose."""


def name(metric: MetricWrapperBase) -> str:
    """As Prometheus knows it: a counter ends in `_total`."""
    return str(metric._name) + ("_total" if isinstance(metric, Counter) else "")


def select(metric: MetricWrapperBase, suffix: str = "", more: str = "") -> str:
    """A selector; `more` are further matchers."""
    return f"{name(metric)}{suffix}{{{WORKERS}{',' + more if more else ''}}}"


def rate(metric: Counter, by: str = "", more: str = "") -> str:
    """A second, summed."""
    return f"{_sum(by)} (rate({select(metric, more=more)}[$__rate_interval]))"


def increase(metric: Counter, by: str = "", over: str = "$__range", more: str = "") -> str:
    """How many within the time that is shown, summed."""
    return f"{_sum(by)} (increase({select(metric, more=more)}[{over}]))"


def quantile(q: float, metric: Histogram, by: str = "", more: str = "") -> str:
    """A quantile over all workers."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, {_sum(labels)} (rate({select(metric, '_bucket', more)}[$__rate_interval])))"


def mean(metric: Histogram, by: str = "", more: str = "") -> str:
    """Mean of what was observed."""
    return f"{count_rate(metric, by, more, '_sum')} / {count_rate(metric, by, more)}"


def count_rate(metric: Histogram, by: str = "", more: str = "", suffix: str = "_count") -> str:
    """Observations a second."""
    return f"{_sum(by)} (rate({select(metric, suffix, more)}[$__rate_interval]))"


def total(metric: Gauge, by: str = "", more: str = "") -> str:
    """Summed over workers."""
    return f"{_sum(by)} ({select(metric, more=more)})"


def highest(metric: Gauge, by: str = "", more: str = "") -> str:
    """The highest of all workers: for what each of them sees whole, and for ages."""
    return f"max{_by(by)} ({select(metric, more=more)})"


def age(metric: Gauge, by: str = "", more: str = "") -> str:
    """Seconds since the time that a gauge holds; nothing while it is 0."""
    return f"time() - max{_by(by)} ({select(metric, more=more)} > 0)"


def or_zero(expr: str) -> str:
    """0 where there is no series yet, so that a number stands there."""
    return f"({expr}) or vector(0)"


def _sum(by: str) -> str:
    return f"sum{_by(by)}"


def _by(by: str) -> str:
    return f" by ({by})" if by else ""
