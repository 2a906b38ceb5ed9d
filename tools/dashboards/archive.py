"""The archive: batches n of N, what stands still, throughput, sinks."""

from __future__ import annotations

from millstream import metrics as m
from tools.dashboards import parts
from tools.dashboards.grafana import Dashboard, Panel, Query, Row
from tools.dashboards.parts import ARCHIVE, CHANGEFEEDS, ENGINE, stat
from tools.dashboards.promql import highest, increase, or_zero, quantile, rate, total

RDB = 'stream=~"(.*[.])?rdb[.].*"'
_ALL = total(m.BATCH_INSTANCES)
_DONE = total(m.BATCH_INSTANCES, more='state="done"')

FIRST = Row(
    "At a glance",
    (
        stat("Batches under way", "Batches that are not published, failed or ended.",
             or_zero(total(m.BATCHES, more='state="running"')), decimals=0),
        stat("Instances done", "n of N: instances that are done, of all instances of batches under way.",
             f"{_DONE} / ({_ALL} > 0)", unit="percentunit", empty="no batch"),
        stat("Failed batches", "What to do: MillstreamBatchFailed.",
             or_zero(total(m.BATCHES, more='state="failed"')), bad=1, decimals=0),
        stat("Quiet for", "Seconds since the quietest batch was last heard of. What to do: MillstreamBatchStuck.",
             highest(m.BATCH_QUIET), unit="s", warn=300, bad=900, empty="no batch"),
        stat("Published", "Batches published within the time that is shown.",
             or_zero(increase(m.BATCHES_PUBLISHED)), decimals=0),
        parts.lag_seconds(3600, RDB),
        parts.alerts(),
        Panel("Instances: n of N", "Instances of batches under way, by state. missing: named in the manifest, not "
              "begun.",
              (Query(total(m.BATCH_INSTANCES, "state"), "{{state}}"),), stacked=True),
        parts.rows(RDB),
        parts.lag(RDB),
    ),
)  # fmt: skip

BATCHES = Row(
    "Batches",
    (
        Panel("Under way", "By state.", (Query(total(m.BATCHES, "state"), "{{state}}"),), stacked=True),
        Panel("Ended, an hour", "Published, failed or refused, and ended by hand, extrapolated to an hour.",
              (Query(f"3600 * {rate(m.BATCHES_PUBLISHED)}", "published"),
               Query(f"3600 * {rate(m.BATCHES_FAILED)}", "failed"),
               Query(f"3600 * {rate(m.BATCHES_ABORTED)}", "ended by hand"))),
        Panel("From first fact to publication", "Seconds, of published batches.",
              (Query(quantile(0.5, m.BATCH_SECONDS), "median"),
               Query(quantile(0.95, m.BATCH_SECONDS), "95th percentile")), unit="s"),
        Panel("Oldest and quietest", "Age of the oldest batch under way, and since when the quietest was not heard of.",
              (Query(highest(m.BATCH_OLDEST), "oldest"), Query(highest(m.BATCH_QUIET), "quietest")), unit="s"),
        Panel("Rows published", "Rows of published batches, a second.",
              (Query(rate(m.BATCH_ROWS), "rows"),), unit="rowsps"),
        Panel("Dead letters", "Records refused, a second; each one keeps its batch from being published.",
              (Query(rate(m.DEAD_LETTERS, "stream", RDB), "{{stream}}"),), unit="ops"),
    ),
)  # fmt: skip

DASHBOARD = Dashboard(
    uid=ARCHIVE,
    title="Millstream: archive",
    description="Dumps of Redis into Parquet and ClickHouse: batches, lag, sinks.",
    rows=(FIRST, BATCHES, Row("Sinks", parts.sinks())),
    variables=parts.VARIABLES,
    links=(("Engine", ENGINE), ("Changefeeds", CHANGEFEEDS)),
)
