"""The changefeeds: what waits in the outbox, how old it is, how far the projection is behind."""

from __future__ import annotations

from millstream import metrics as m
from tools.dashboards import parts
from tools.dashboards.grafana import Dashboard, Panel, Query, Row
from tools.dashboards.parts import ARCHIVE, CHANGEFEEDS, ENGINE, stat
from tools.dashboards.promql import age, highest, mean, or_zero, quantile, rate, total

FEEDS = 'stream!~"(.*[.])?rdb[.].*"'
_FAILED = rate(m.OUTBOX_FAILED)

FIRST = Row(
    "At a glance",
    (
        stat("Outbox backlog", "Events that are not published.", highest(m.OUTBOX_BACKLOG), warn=100, bad=1000,
             empty="no relay"),
        stat("Oldest event", "Age of the oldest event that is not published.", highest(m.OUTBOX_OLDEST), unit="s",
             warn=30, bad=300, empty="no relay"),
        stat("Parked events", "Events that were given up; each holds back its aggregate.",
             or_zero(highest(m.OUTBOX_PARKED)), bad=1, decimals=0),
        parts.lag_seconds(300, FEEDS),
        stat("Projection lag", "Seconds from an event to its being in the projection, 95th percentile.",
             quantile(0.95, m.PROJECTION_LAG), unit="s", warn=10, bad=60, empty="no events"),
        parts.dead_letters(FEEDS),
        parts.alerts(),
        Panel("Published", "Events acknowledged by Kafka, a second.",
              (Query(rate(m.OUTBOX_PUBLISHED, "aggregate_type"), "{{aggregate_type}}"),), unit="ops", stacked=True),
        Panel("Backlog", "Events that are not published, of these held back behind a parked one, and parked.",
              (Query(highest(m.OUTBOX_BACKLOG), "not published"), Query(highest(m.OUTBOX_HELD), "held back"),
               Query(highest(m.OUTBOX_PARKED), "parked"))),
        parts.lag(FEEDS, bad=300),
    ),
)  # fmt: skip

OUTBOX = Row(
    "Outbox",
    (
        Panel("From writing to Kafka", "Seconds from the oldest event of a batch to its publication.",
              (Query(mean(m.OUTBOX_LAG), "mean"), Query(quantile(0.95, m.OUTBOX_LAG), "95th percentile")), unit="s",
              bad=30),
        Panel("Seconds of a publication", "From claim to acknowledgement, of a batch.",
              (Query(quantile(0.5, m.OUTBOX_LATENCY), "median"),
               Query(quantile(0.99, m.OUTBOX_LATENCY), "99th percentile")), unit="s"),
        Panel("Failures and retries", "Events a second.",
              (Query(rate(m.OUTBOX_FAILED, "aggregate_type"), "{{aggregate_type}} failed"),
               Query(rate(m.OUTBOX_RETRIES, "aggregate_type"), "{{aggregate_type}} again"),
               Query(rate(m.OUTBOX_LEASES_LOST), "lease lost")), unit="ops"),
        Panel("Share of failures", "Failed publications of all; the alert is at one in ten.",
              (Query(f"{_FAILED} / ({_FAILED} + {rate(m.OUTBOX_PUBLISHED)})", "failed"),), unit="percentunit", bad=0.1),
        Panel("Most attempts of an event", "0: none failed. From 7 on, pauses are the longest; at 20 it is given up.",
              (Query(highest(m.OUTBOX_MAX_ATTEMPTS), "attempts"),
               Query(highest(m.OUTBOX_FAILING), "failures in a row")), bad=7),
        Panel("Last publication", "Seconds since an event was last published.",
              (Query(age(m.OUTBOX_LAST), "ago"),), unit="s"),
        Panel("Events of a claim", "Median.", (Query(quantile(0.5, m.OUTBOX_BATCH), "events"),)),
        Panel("Payload", "Bytes acknowledged by Kafka, a second.",
              (Query(rate(m.OUTBOX_BYTES, "aggregate_type"), "{{aggregate_type}}"),), unit="Bps"),
        Panel("WAL of the slot", "What Postgres keeps for the relay via replication.",
              (Query(highest(m.OUTBOX_WAL_BYTES), "WAL"),), unit="bytes", bad=1 << 30),
    ),
)  # fmt: skip

PROJECTION = Row(
    "Projection and products",
    (
        Panel("Events", "Events a second: applied, duplicates, conflicts (applied, recorded), errors (recorded).",
              (Query(rate(m.PROJECTION_EVENTS, "operation"), "{{operation}}"),), unit="ops", stacked=True),
        Panel("Projection lag", "Seconds from the oldest event of a chunk to its being in the projection.",
              (Query(quantile(0.5, m.PROJECTION_LAG), "median"),
               Query(quantile(0.95, m.PROJECTION_LAG), "95th percentile")), unit="s", bad=60),
        Panel("Versions that came late", "Versions that were not there yet when a later one came, a second.",
              (Query(rate(m.PROJECTION_GAPS), "versions"),), unit="ops"),
        Panel("Lag", "Records behind the committed positions, by stream.",
              (Query(total(m.LAG_RECORDS, "stream", FEEDS), "{{stream}}"),), bad=1000),
        parts.rows(FEEDS),
        parts.watermark(),
    ),
)  # fmt: skip

DASHBOARD = Dashboard(
    uid=CHANGEFEEDS,
    title="Millstream: changefeeds",
    description="Outbox, projection and product ETL on Postgres: backlog, lag, errors.",
    rows=(FIRST, OUTBOX, PROJECTION, Row("Sinks", parts.sinks(), folded=True)),
    variables=parts.VARIABLES,
    links=(("Engine", ENGINE), ("Archive", ARCHIVE)),
)
