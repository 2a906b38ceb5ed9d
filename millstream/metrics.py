"""Every metric, declared once. Labels are bounded (T23): never a batch, an instance, or a topic per instance.

`stream` is the stream's name as `stream_label` gives it, `sink` the sink's class of backend, `stage` one of STAGES,
`error` the class name of an exception. Names carry units; durations are in seconds, sizes in bytes.
"""

from __future__ import annotations

import re
from importlib.metadata import version

from prometheus_client import Counter, Gauge, Histogram, Info

STAGES = ("fetch", "decode", "agent", "sink", "commit", "restore")
"""Where time goes: reading, wire to Arrow, user code, sinks, the Kafka transaction, loading a table."""

LABELS = frozenset({"stream", "stage", "sink", "error", "operation", "source", "aggregate_type"})
"""The only label names in use; a test holds this line."""

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

CHUNKS = Counter("millstream_chunks", "Chunks committed.", ["stream"])
ROWS = Counter("millstream_rows", "Rows of committed chunks.", ["stream"])
BYTES = Counter("millstream_bytes", "Decoded bytes of committed chunks.", ["stream"])
STAGE_SECONDS = Histogram(
    "millstream_stage_seconds", "Seconds per chunk in a stage.", ["stream", "stage"], buckets=_FAST
)

COMMIT_SECONDS = Histogram(
    "millstream_commit_seconds", "Seconds of one commit cycle (one Kafka transaction).", buckets=_FAST
)
COMMIT_CHUNKS = Counter("millstream_commit_chunks", "Chunks in commit cycles; by cycles: how many share a transaction.")
COMMIT_ERRORS = Counter("millstream_commit_errors", "Commit cycles that failed.", ["error"])

SINK_SECONDS = Histogram(
    "millstream_sink_seconds",
    "Seconds of one successful sink call, retries included.",
    ["sink", "operation"],
    buckets=_FAST,
)
SINK_ROWS = Counter("millstream_sink_rows", "Rows made durable in a sink.", ["sink"])
SINK_BYTES = Counter("millstream_sink_bytes", "Bytes made durable in a sink, as stored.", ["sink"])
SINK_RETRIES = Counter("millstream_sink_retries", "Sink calls tried again.", ["sink", "operation"])
SINK_ERRORS = Counter("millstream_sink_errors", "Errors of sinks, retried ones included.", ["sink", "error"])
SINK_SKIPPED = Counter("millstream_sink_skipped", "Replayed chunks that the sink held already.", ["sink"])
ATTEMPTS_RAISED = Counter(
    "millstream_sink_attempts_raised", "Attempts raised in a fenced transaction (hole a).", ["sink"]
)

PAUSED_PARTITIONS = Gauge("millstream_paused_partitions", "Partitions paused while a sink call is retried.", ["stream"])
PARKED_PARTITIONS = Gauge(
    "millstream_parked_partitions", "Partitions parked after too many replays: alert.", ["stream"]
)
ASSIGNED_PARTITIONS = Gauge("millstream_assigned_partitions", "Partitions this worker owns.", ["stream"])
BUFFERED_BYTES = Gauge("millstream_buffered_bytes", "Bytes fetched and not yet in a chunk.")

DEAD_LETTERS = Counter("millstream_dead_letters", "Records sent to a dead-letter topic.", ["stream"])
REPLAYS = Counter("millstream_replays", "Chunks planned by an earlier life and read again.", ["stream"])
REBALANCES = Counter("millstream_rebalances", "Assignments received.")
FENCED = Counter("millstream_fenced", "Commits refused because this worker had lost its place in the group.")

RESTORED_RECORDS = Counter("millstream_restored_records", "Changelog records loaded into tables.", ["stream"])
RESTORE_SECONDS = Histogram("millstream_restore_seconds", "Seconds to load the tables at an assignment.", buckets=_FAST)

FED_RECORDS = Counter("millstream_fed_records", "Records produced by a source.", ["source"])
FED_BYTES = Counter("millstream_fed_bytes", "Bytes read by a source.", ["source"])

_BY_TYPE = ["aggregate_type"]  # bounded: those that MILLSTREAM_OUTBOX_TOPICS names
OUTBOX_PUBLISHED = Counter("millstream_outbox_publish_success", "Events acknowledged by Kafka.", _BY_TYPE)
OUTBOX_FAILED = Counter("millstream_outbox_publish_failure", "Publications that failed or are unknown.", _BY_TYPE)
OUTBOX_RETRIES = Counter("millstream_outbox_publish_retry", "Events published again after a failure.", _BY_TYPE)
OUTBOX_LATENCY = Histogram("millstream_outbox_publish_latency_seconds", "Seconds to publish a batch.", buckets=_FAST)
OUTBOX_LAG = Histogram(
    "millstream_outbox_publish_lag_seconds",
    "Seconds from the oldest event of a batch to its publication.",
    buckets=(*_FAST, 60, 300, 1800),
)
OUTBOX_BATCH = Histogram(
    "millstream_outbox_batch_events", "Events of one claim.", buckets=(1, 5, 10, 50, 100, 200, 500, 1000, 10_000)
)
OUTBOX_BACKLOG = Gauge("millstream_outbox_backlog", "Events that are not published: alert above 1000 for 5 minutes.")
OUTBOX_OLDEST = Gauge("millstream_outbox_oldest_seconds", "Age of the oldest event that is not published.")
OUTBOX_PARKED = Gauge("millstream_outbox_parked", "Events given up after too many attempts: alert above 0.")
OUTBOX_HELD = Gauge("millstream_outbox_held", "Events held back behind a parked one of their aggregate.")
OUTBOX_MAX_ATTEMPTS = Gauge("millstream_outbox_max_delivery_attempts", "Most failed attempts of a pending event.")
OUTBOX_LEASES_LOST = Counter("millstream_outbox_leases_lost", "Events whose lease ended before they were marked.")
OUTBOX_WAL_BYTES = Gauge("millstream_outbox_wal_bytes", "WAL that the server keeps for the replication slot.")

PROJECTION_EVENTS = Counter(
    "millstream_projection_events",
    "Events taken in by the projection: applied, duplicates, conflicts (applied, recorded), errors (recorded).",
    ["operation"],
)
PROJECTION_LAG = Histogram(
    "millstream_projection_lag_seconds",
    "Seconds from the oldest event of a chunk to its being in the projection.",
    buckets=(*_FAST, 60, 300, 3600),
)
PROJECTION_GAPS = Counter("millstream_projection_gaps", "Versions that were not there yet when a later one came.")

BATCHES_PUBLISHED = Counter("millstream_batches_published", "Batches published.")
BATCHES_FAILED = Counter("millstream_batches_failed", "Batches refused or aborted.")

BUILD = Info("millstream_build", "Version of this program.")
BUILD.info({"version": version("millstream")})

_PER_INSTANCE = re.compile(r"(.*\brdb\.records)\..+")


def stream_label(topic: str, namespace: str = "") -> str:
    """The bounded name of a topic's stream: `rdb.records` for every `<namespace>rdb.records.<cluster>.<instance>`."""
    name = topic.removeprefix(namespace)
    m = _PER_INSTANCE.fullmatch(name)
    return m[1] if m else name
