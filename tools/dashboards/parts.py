"""Panels that more than one dashboard has."""

from __future__ import annotations

from millstream import metrics as m
from tools.dashboards.grafana import Panel, Query, Variable
from tools.dashboards.promql import age, highest, increase, name, or_zero, quantile, rate, select, total

ENGINE, ARCHIVE, CHANGEFEEDS = "millstream-engine", "millstream-archive", "millstream-changefeeds"
RUNBOOK = "docs/runbook.md"

VARIABLES = (
    Variable("job", "Job", name(m.BUILD) + "_info", "job"),
    Variable("worker", "Worker", name(m.BUILD) + "_info", "instance", 'job=~"$job"'),
)


def stat(
    title: str,
    description: str,
    expr: str,
    *,
    unit: str = "short",
    bad: float | None = None,
    warn: float | None = None,
    bad_below: bool = False,
    decimals: int | None = None,
    empty: str = "",
) -> Panel:
    """One number."""
    return Panel(
        title, description, (Query(expr),), kind="stat", unit=unit, width=4, height=4, bad=bad, warn=warn,
        bad_below=bad_below, decimals=decimals, empty=empty,
    )  # fmt: skip


def workers() -> Panel:
    """How many answer."""
    return stat(
        "Workers", "Workers and relays that Prometheus reaches. Fewer than you started: MillstreamWorkerDown.",
        f"count({select(m.BUILD, '_info')})", bad=1, bad_below=True, decimals=0, empty="none",
    )  # fmt: skip


def lag_records() -> Panel:
    """Lag as a number."""
    return stat("Lag", "Records that are not committed, all partitions together.", total(m.LAG_RECORDS), empty="none")


def lag_seconds(bad: float, more: str = "") -> Panel:
    """Lag as an age."""
    return stat(
        "Lag in time", "Age of the oldest record that is not committed: how old what the sinks show is.",
        highest(m.LAG_SECONDS, more=more), unit="s", warn=bad / 5, bad=bad, empty="none",
    )  # fmt: skip


def last_commit() -> Panel:
    """Of the worker that is quiet for the longest time."""
    return stat(
        "Last commit", "Seconds since the last commit of the worker whose last one is the oldest. Long is harmless "
        "while there is no lag.", f"time() - min({select(m.LAST_COMMIT)} > 0)", unit="s", empty="none yet",
    )  # fmt: skip


def dead_letters(more: str) -> Panel:
    """Dead letters of the time that is shown."""
    return stat(
        "Dead letters", "Records refused within the time that is shown. What to do: MillstreamDeadLetters.",
        or_zero(increase(m.DEAD_LETTERS, more=more)), bad=1, decimals=0,
    )  # fmt: skip


def sink_failing() -> Panel:
    """Since when a sink is down."""
    return stat(
        "Sink failing", "Since when the longest failing call of a sink has been retried; 0: none is.",
        or_zero(highest(m.SINK_FAILING)), unit="s", warn=1, bad=300,
    )  # fmt: skip


def alerts() -> Panel:
    """What fires now."""
    return Panel(
        "Alerts", f"Alerts that fire now. What to do: {RUNBOOK}, a section for each name.",
        (Query('ALERTS{alertstate="firing",alertname=~"Millstream.*"}', instant=True, table=True),),
        kind="table", width=24, height=5, columns=("severity", "alertname", "job", "instance", "stream", "sink"),
    )  # fmt: skip


def rows(more: str = "") -> Panel:
    """Throughput by stream."""
    return Panel(
        "Rows committed", "Rows a second of committed chunks, by stream.",
        (Query(rate(m.ROWS, "stream", more), "{{stream}}"),), unit="rowsps", stacked=True,
    )  # fmt: skip


def lag(more: str = "", bad: float | None = None) -> Panel:
    """Lag in time by stream."""
    return Panel(
        "Lag in time", "Age of the oldest record not committed, by stream: the worst worker.",
        (Query(highest(m.LAG_SECONDS, "stream", more), "{{stream}}"),), unit="s", bad=bad,
    )  # fmt: skip


def sinks() -> tuple[Panel, ...]:
    """Latency, volume, trouble."""
    return (
        Panel("Sink calls, 95th percentile", "Seconds of a successful call, retries included.",
              (Query(quantile(0.95, m.SINK_SECONDS, "sink, operation"), "{{sink}} {{operation}}"),), unit="s"),
        Panel("Rows into sinks", "Rows made durable, a second.",
              (Query(rate(m.SINK_ROWS, "sink"), "{{sink}}"),), unit="rowsps"),
        Panel("Bytes into sinks", "Bytes made durable, as stored, a second.",
              (Query(rate(m.SINK_BYTES, "sink"), "{{sink}}"),), unit="Bps"),
        Panel("Sink errors and retries", "Errors by kind, retried ones included, and calls tried again.",
              (Query(rate(m.SINK_ERRORS, "sink, error"), "{{sink}} {{error}}"),
               Query(rate(m.SINK_RETRIES, "sink, operation"), "{{sink}} {{operation}} again"))),
        Panel("Calls under way", "Sink calls that have not returned.",
              (Query(total(m.SINK_CALLS, "sink"), "{{sink}}"),)),
        Panel("Failing since", "Since when the longest failing call is retried; 0: none is.",
              (Query(highest(m.SINK_FAILING, "sink"), "{{sink}}"),), unit="s", bad=300),
        Panel("Replays met by sinks", "Replayed chunks that a sink held already (nothing was written twice), and "
              "attempts raised because it had lost one.",
              (Query(rate(m.SINK_SKIPPED, "sink"), "{{sink}} held already"),
               Query(rate(m.ATTEMPTS_RAISED, "sink"), "{{sink}} attempt raised"))),
    )  # fmt: skip


def watermark() -> Panel:
    """Age of watermarks."""
    return Panel(
        "Watermark age", "Seconds since the time up to which a source's changes are in its sink.",
        (Query(age(m.WATERMARK, "stream"), "{{stream}}"),), unit="s",
    )  # fmt: skip
