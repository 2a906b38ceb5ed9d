"""The engine: is it alive, does it keep up, does it commit; then where the time goes."""

from __future__ import annotations

from millstream import metrics as m
from tools.dashboards import parts
from tools.dashboards.grafana import Dashboard, Panel, Query, Row
from tools.dashboards.parts import ARCHIVE, CHANGEFEEDS, ENGINE, stat
from tools.dashboards.promql import (
    WORKERS,
    count_rate,
    highest,
    increase,
    mean,
    or_zero,
    quantile,
    rate,
    select,
    total,
)

FIRST = Row(
    "At a glance",
    (
        parts.workers(),
        parts.lag_seconds(900),
        parts.lag_records(),
        parts.last_commit(),
        stat("Parked partitions", "Partitions that stand still until somebody acts.",
             or_zero(total(m.PARKED_PARTITIONS)), bad=1, decimals=0),
        parts.sink_failing(),
        parts.alerts(),
        parts.rows(),
        parts.lag(),
        Panel("Commits and failures", "Kafka transactions a second, failed ones by error, and commits refused because "
              "a worker had lost its place.",
              (Query(count_rate(m.COMMIT_SECONDS), "committed"),
               Query(rate(m.COMMIT_ERRORS, "error"), "{{error}}"),
               Query(rate(m.FENCED), "fenced")), unit="ops"),
    ),
)  # fmt: skip

CHUNKS = Row(
    "Chunks: where the time goes",
    (
        Panel("Seconds in each state, 95th percentile", "reading: first record read; planned: plan being put on "
              "record; writing: agent and sinks; written: waiting for the commit, and in it.",
              (Query(quantile(0.95, m.STATE_SECONDS, "state"), "{{state}}"),), unit="s"),
        Panel("Stages of writing, mean", "Decoding, and user code with the sinks that it waits for.",
              (Query(mean(m.STAGE_SECONDS, "stage"), "{{stage}}"),), unit="s"),
        Panel("Commit cycle", "Seconds of one Kafka transaction.",
              (Query(quantile(0.5, m.COMMIT_SECONDS), "median"),
               Query(quantile(0.99, m.COMMIT_SECONDS), "99th percentile")), unit="s"),
        Panel("Chunks", "Committed chunks a second, by stream.",
              (Query(rate(m.CHUNKS, "stream"), "{{stream}}"),), unit="ops"),
        Panel("Rows of a chunk", "Median by stream. Small chunks cost commits: MILLSTREAM_CHUNK_MAX_AGE.",
              (Query(quantile(0.5, m.CHUNK_ROWS, "stream"), "{{stream}}"),)),
        Panel("Bytes of a chunk", "Median of decoded bytes, by stream.",
              (Query(quantile(0.5, m.CHUNK_BYTES, "stream"), "{{stream}}"),), unit="bytes"),
        Panel("Chunks of a commit", "How many share a transaction.",
              (Query(f"{rate(m.COMMIT_CHUNKS)} / {count_rate(m.COMMIT_SECONDS)}", "chunks"),)),
        Panel("Decoded bytes", "Of committed chunks, a second, by stream.",
              (Query(rate(m.BYTES, "stream"), "{{stream}}"),), unit="Bps"),
        Panel("Output, dead letters, replays", "Records a second: produced to other topics, refused, and chunks read "
              "again that an earlier life had planned.",
              (Query(rate(m.OUTPUT_RECORDS, "stream"), "{{stream}} produced"),
               Query(rate(m.DEAD_LETTERS, "stream"), "{{stream}} dead letters"),
               Query(rate(m.REPLAYS, "stream"), "{{stream}} replays")), unit="ops"),
    ),
)  # fmt: skip

READING = Row(
    "Reading and lag",
    (
        Panel("Lag", "Records behind the committed positions, by stream.",
              (Query(total(m.LAG_RECORDS, "stream"), "{{stream}}"),)),
        Panel("Worst partitions", "Age of the oldest record not committed: the ten that are furthest behind.",
              (Query(f"topk(10, {highest(m.PARTITION_LAG_SECONDS, 'stream, partition')})",
                     "{{stream}} {{partition}}"),), unit="s"),
        Panel("Worst partitions, records", "Records behind: the ten that are furthest behind.",
              (Query(f"topk(10, {highest(m.PARTITION_LAG_RECORDS, 'stream, partition')})",
                     "{{stream}} {{partition}}"),)),
        Panel("Read from Kafka", "Records a second.",
              (Query(rate(m.FETCHED_RECORDS, "stream"), "{{stream}}"),), unit="ops"),
        Panel("Bytes read", "Bytes of values after decompression, a second.",
              (Query(rate(m.FETCHED_BYTES, "stream"), "{{stream}}"),), unit="Bps"),
        Panel("Buffered", "Bytes fetched and not yet committed, by worker; back-pressure begins at "
              "MILLSTREAM_BUFFER_MAX_BYTES.",
              (Query(total(m.BUFFERED_BYTES, "instance"), "{{instance}}"),), unit="bytes"),
        Panel("Age of the lag", "Seconds since Kafka last told the ends of the logs.",
              (Query(f"time() - min by (instance) ({select(m.LAG_LOOK)} > 0)", "{{instance}}"),), unit="s", bad=300),
    ),
)  # fmt: skip

WORKERS_ROW = Row(
    "Workers",
    (
        Panel("Ready", "1 while a worker is ready (/readyz).",
              (Query(highest(m.READY, "instance"), "{{instance}}"),)),
        Panel("Not ready, and why", "Workers that are not ready, by reason.",
              (Query(total(m.NOT_READY, "reason"), "{{reason}}"),)),
        Panel("Partitions by state", "What the partitions are doing.",
              (Query(total(m.PARTITIONS, "state"), "{{state}}"),), stacked=True),
        Panel("Partitions by worker", "How evenly they are spread.",
              (Query(total(m.ASSIGNED_PARTITIONS, "instance"), "{{instance}}"),), stacked=True),
        Panel("Paused and parked", "Paused: a sink call is being retried. Parked: until somebody acts.",
              (Query(total(m.PAUSED_PARTITIONS, "stream"), "{{stream}} paused"),
               Query(total(m.PARKED_PARTITIONS, "stream"), "{{stream}} parked"))),
        Panel("Rebalances", "Assignments received, within five minutes, by worker.",
              (Query(increase(m.REBALANCES, "instance", over="5m"), "{{instance}}"),)),
        Panel("Event loop delay, 99th percentile", "By how much timers come late. Near the session timeout, workers "
              "are expelled.",
              (Query(quantile(0.99, m.LOOP_DELAY, "instance"), "{{instance}}"),), unit="s", bad=1),
        Panel("Memory", "Resident memory.",
              (Query(f"sum by (instance) (process_resident_memory_bytes{{{WORKERS}}})", "{{instance}}"),),
              unit="bytes"),
        Panel("CPU", "Cores in use.",
              (Query(f"sum by (instance) (rate(process_cpu_seconds_total{{{WORKERS}}}[$__rate_interval]))",
                     "{{instance}}"),)),
    ),
)  # fmt: skip

TABLES = Row(
    "Tables and restores",
    (
        Panel("Restoring", "Workers that are loading an assignment.",
              (Query(total(m.RESTORING), "workers"),)),
        Panel("Left to restore", "Changelog records that are still to be loaded.",
              (Query(total(m.RESTORE_LEFT, "table"), "{{table}}"),)),
        Panel("Restored", "Changelog records loaded, a second.",
              (Query(rate(m.RESTORED_RECORDS, "table"), "{{table}}"),), unit="ops"),
        Panel("Seconds to load an assignment", "95th percentile, tables included.",
              (Query(quantile(0.95, m.RESTORE_SECONDS), "95th percentile"),), unit="s"),
        Panel("Keys", "As RocksDB estimates them.",
              (Query(total(m.TABLE_KEYS, "table"), "{{table}}"),)),
        Panel("Size", "Files and memory.",
              (Query(total(m.TABLE_BYTES, "table"), "{{table}}"),), unit="bytes"),
        Panel("Changes", "Committed changes, a second.",
              (Query(rate(m.TABLE_CHANGES, "table"), "{{table}}"),), unit="ops"),
    ),
    folded=True,
)  # fmt: skip

DASHBOARD = Dashboard(
    uid=ENGINE,
    title="Millstream: engine",
    description="Workers of any stream: lag, throughput, commits, sinks, restores.",
    rows=(FIRST, CHUNKS, READING, Row("Sinks", parts.sinks()), WORKERS_ROW, TABLES),
    variables=parts.VARIABLES,
    links=(("Archive", ARCHIVE), ("Changefeeds", CHANGEFEEDS)),
)
