"""Every metric, declared once. Labels are bounded (T23): never a batch, an instance, a cluster, or a topic of theirs.

`stream` is the stream's name as `stream_label` gives it; `partition` a partition's number, and only where the stream's
topics are fixed (PER_PARTITION); `sink`, `table`, `source` are names that code gives; `stage` is one of STAGES, `state`
one of STATES, PARTITION_STATES, BATCH_STATES or INSTANCE_STATES, `reason` one of REASONS; `error` the class name of an
exception. Names carry units; durations are in seconds, sizes in bytes, times in Unix seconds (`_timestamp_seconds`).

docs/metrics.md has them all: `python -m tests.unit.docs.metrics_table` writes it, by the headings `# ---` here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import version

from prometheus_client import Counter, Gauge, Histogram, Info
from prometheus_client.metrics import MetricWrapperBase

STAGES = ("decode", "agent")
"""Where a chunk's time goes within `writing`: wire to Arrow, and user code with the sinks that it waits for."""

STATES = ("reading", "planned", "writing", "written")
"""Of a chunk (docs/architecture.md): first record read, plan being put on record, agents and sinks at work, waiting for
the commit and in it."""
PARTITION_STATES = (*STATES, "retrying", "parked")
"""Of a partition: as its chunk, unless a sink call for it is being retried, or it is parked."""
BATCH_STATES = ("running", "failed")
"""Of batches that are under way; finished ones are counted."""
INSTANCE_STATES = ("missing", "running", "done", "failed")
"""Of the instances of those batches; `missing`: named in the manifest, not begun. n of N: done of all of them."""
REASONS = ("starting", "stopping", "restoring", "fenced", "stalled", "parked", "sink")
"""Why a worker is not ready (`/readyz`)."""

LABELS = frozenset(
    {
        "aggregate_type", "error", "operation", "partition", "reason", "sink", "source", "stage", "state", "stream",
        "table",
    }
)  # fmt: skip
"""The only label names in use; a test holds this line."""

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG = (*_FAST, 60, 300, 1800)
_HOURS = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 4 * 3600, 12 * 3600, 24 * 3600)
_ROWS = (1, 10, 100, 1000, 5000, 10_000, 25_000, 50_000, 100_000, 1_000_000)
_SIZES = tuple(float(1 << n) for n in range(10, 31, 2))

# --- Chunks
CHUNKS = Counter("millstream_chunks", "Chunks committed.", ["stream"])
ROWS = Counter("millstream_rows", "Rows of committed chunks.", ["stream"])
BYTES = Counter("millstream_bytes", "Decoded bytes of committed chunks.", ["stream"])
CHUNK_ROWS = Histogram("millstream_chunk_rows", "Rows of a committed chunk.", ["stream"], buckets=_ROWS)
CHUNK_BYTES = Histogram("millstream_chunk_bytes", "Decoded bytes of a committed chunk.", ["stream"], buckets=_SIZES)
STATE_SECONDS = Histogram(
    "millstream_chunk_state_seconds", "Seconds that a chunk spent in a state.", ["stream", "state"], buckets=_LONG
)
STAGE_SECONDS = Histogram(
    "millstream_stage_seconds", "Seconds per chunk in a stage of writing.", ["stream", "stage"], buckets=_LONG
)
OUTPUT_RECORDS = Counter(
    "millstream_output_records", "Records produced to other topics in chunks' transactions.", ["stream"]
)
DEAD_LETTERS = Counter("millstream_dead_letters", "Records sent to a dead-letter topic.", ["stream"])
REPLAYS = Counter("millstream_replays", "Chunks planned by an earlier life and read again.", ["stream"])

# --- Commits
COMMIT_SECONDS = Histogram(
    "millstream_commit_seconds", "Seconds of one commit cycle (one Kafka transaction).", buckets=_FAST
)
COMMIT_CHUNKS = Counter("millstream_commit_chunks", "Chunks in commit cycles; by cycles: how many share a transaction.")
COMMIT_ERRORS = Counter("millstream_commit_errors", "Commit cycles that failed.", ["error"])
LAST_COMMIT = Gauge("millstream_last_commit_timestamp_seconds", "Time of the last successful commit; 0 before it.")
FENCED = Counter("millstream_fenced", "Commits refused because this worker had lost its place in the group.")

# --- Reading and lag
LAG_RECORDS = Gauge(
    "millstream_lag_records", "Records behind the committed positions, all partitions of this worker.", ["stream"]
)
LAG_SECONDS = Gauge(
    "millstream_lag_seconds", "Age of the oldest record not committed, of this worker's partitions.", ["stream"]
)
PARTITION_LAG_RECORDS = Gauge(
    "millstream_partition_lag_records", "As millstream_lag_records, by partition.", ["stream", "partition"]
)
PARTITION_LAG_SECONDS = Gauge(
    "millstream_partition_lag_seconds", "As millstream_lag_seconds, by partition.", ["stream", "partition"]
)
LAG_LOOK = Gauge("millstream_lag_timestamp_seconds", "Time at which Kafka last told the ends of the logs; 0 before it.")
FETCHED_RECORDS = Counter("millstream_fetched_records", "Records read from Kafka.", ["stream"])
FETCHED_BYTES = Counter("millstream_fetched_bytes", "Bytes of their values, after decompression.", ["stream"])
BUFFERED_BYTES = Gauge(
    "millstream_buffered_bytes",
    "Bytes fetched and not yet committed (back-pressure begins at MILLSTREAM_BUFFER_MAX_BYTES).",
)

# --- Worker
READY = Gauge("millstream_ready", "1 while the worker is ready (/readyz), else 0.")
NOT_READY = Gauge("millstream_not_ready", "1 for each reason why the worker is not ready.", ["reason"])
ASSIGNED_PARTITIONS = Gauge("millstream_assigned_partitions", "Partitions this worker owns.", ["stream"])
PARTITIONS = Gauge("millstream_partitions", "Partitions this worker owns, by state.", ["stream", "state"])
PAUSED_PARTITIONS = Gauge("millstream_paused_partitions", "Partitions paused while a sink call is retried.", ["stream"])
PARKED_PARTITIONS = Gauge(
    "millstream_parked_partitions", "Partitions parked after too many replays: alert.", ["stream"]
)
REBALANCES = Counter("millstream_rebalances", "Assignments received.")
LOOP_DELAY = Histogram(
    "millstream_event_loop_delay_seconds", "Seconds by which a timer of the event loop came late.", buckets=_FAST
)

# --- Sinks
SINK_SECONDS = Histogram(
    "millstream_sink_seconds",
    "Seconds of one successful sink call, retries included.",
    ["sink", "operation"],
    buckets=_LONG,
)
SINK_ROWS = Counter("millstream_sink_rows", "Rows made durable in a sink.", ["sink"])
SINK_BYTES = Counter("millstream_sink_bytes", "Bytes made durable in a sink, as stored.", ["sink"])
SINK_RETRIES = Counter("millstream_sink_retries", "Sink calls tried again.", ["sink", "operation"])
SINK_ERRORS = Counter("millstream_sink_errors", "Errors of sinks, retried ones included.", ["sink", "error"])
SINK_SKIPPED = Counter("millstream_sink_skipped", "Replayed chunks that the sink held already.", ["sink"])
ATTEMPTS_RAISED = Counter(
    "millstream_sink_attempts_raised", "Attempts raised in a fenced transaction (hole a).", ["sink"]
)
SINK_CALLS = Gauge("millstream_sink_calls", "Sink calls under way.", ["sink"])
SINK_FAILING = Gauge(
    "millstream_sink_failing_seconds", "Since when the longest failing call of a sink is retried; 0: none is.", ["sink"]
)

# --- Tables
TABLE_KEYS = Gauge("millstream_table_keys", "Keys of a table on this worker, as RocksDB estimates them.", ["table"])
TABLE_BYTES = Gauge("millstream_table_bytes", "Bytes of a table on this worker: files and memory.", ["table"])
TABLE_CHANGES = Counter("millstream_table_changes", "Changes of a table committed.", ["table"])
RESTORING = Gauge("millstream_restoring", "1 while an assignment is being loaded, else 0.")
RESTORE_LEFT = Gauge("millstream_restore_left_records", "Changelog records that are still to be loaded.", ["table"])
RESTORED_RECORDS = Counter("millstream_restored_records", "Changelog records loaded into tables.", ["table"])
RESTORE_SECONDS = Histogram(
    "millstream_restore_seconds", "Seconds to load an assignment, tables included.", buckets=_LONG
)

# --- Batches
BATCHES = Gauge("millstream_batches", "Batches under way, in the tables of this worker.", ["state"])
BATCH_INSTANCES = Gauge(
    "millstream_batch_instances", "Instances of batches under way: n of N is done of all.", ["state"]
)
BATCH_OLDEST = Gauge("millstream_batch_oldest_seconds", "Seconds since the oldest running batch began; 0: none runs.")
BATCH_QUIET = Gauge("millstream_batch_quiet_seconds", "Seconds since the quietest running batch was last heard of.")
BATCHES_PUBLISHED = Counter("millstream_batches_published", "Batches published.")
BATCHES_FAILED = Counter("millstream_batches_failed", "Times that a batch failed or was refused by a sink.")
BATCHES_ABORTED = Counter("millstream_batches_aborted", "Batches ended by hand.")
BATCH_ROWS = Counter("millstream_batch_rows", "Rows of published batches.")
BATCH_SECONDS = Histogram(
    "millstream_batch_seconds", "Seconds from a batch's first fact to its publication.", buckets=_HOURS
)

# --- Feeding
FED_RECORDS = Counter("millstream_fed_records", "Records produced by a source.", ["source"])
FED_BYTES = Counter("millstream_fed_bytes", "Bytes read by a source.", ["source"])

# --- Outbox
_BY_TYPE = ["aggregate_type"]  # bounded: those that MILLSTREAM_OUTBOX_TOPICS names
OUTBOX_PUBLISHED = Counter("millstream_outbox_publish_success", "Events acknowledged by Kafka.", _BY_TYPE)
OUTBOX_FAILED = Counter("millstream_outbox_publish_failure", "Publications that failed or are unknown.", _BY_TYPE)
OUTBOX_RETRIES = Counter("millstream_outbox_publish_retry", "Events published again after a failure.", _BY_TYPE)
OUTBOX_BYTES = Counter("millstream_outbox_publish_bytes", "Payload bytes acknowledged by Kafka.", _BY_TYPE)
OUTBOX_LATENCY = Histogram("millstream_outbox_publish_latency_seconds", "Seconds to publish a batch.", buckets=_FAST)
OUTBOX_LAG = Histogram(
    "millstream_outbox_publish_lag_seconds",
    "Seconds from the oldest event of a batch to its publication.",
    buckets=(*_FAST, 60, 300, 1800),
)
OUTBOX_BATCH = Histogram(
    "millstream_outbox_batch_events", "Events of one claim.", buckets=(1, 5, 10, 50, 100, 200, 500, 1000, 10_000)
)
OUTBOX_LAST = Gauge("millstream_outbox_last_publish_timestamp_seconds", "Time of the last event published; 0 before.")
OUTBOX_FAILING = Gauge("millstream_outbox_failures_in_a_row", "Publications that failed since the last success.")
OUTBOX_BACKLOG = Gauge("millstream_outbox_backlog", "Events that are not published: alert above 1000 for 5 minutes.")
OUTBOX_OLDEST = Gauge("millstream_outbox_oldest_seconds", "Age of the oldest event that is not published.")
OUTBOX_PARKED = Gauge("millstream_outbox_parked", "Events given up after too many attempts: alert above 0.")
OUTBOX_HELD = Gauge("millstream_outbox_held", "Events held back behind a parked one of their aggregate.")
OUTBOX_MAX_ATTEMPTS = Gauge("millstream_outbox_max_delivery_attempts", "Most failed attempts of a pending event.")
OUTBOX_LEASES_LOST = Counter("millstream_outbox_leases_lost", "Events whose lease ended before they were marked.")
OUTBOX_WAL_BYTES = Gauge("millstream_outbox_wal_bytes", "WAL that the server keeps for the replication slot.")

# --- Projection and products
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
WATERMARK = Gauge(
    "millstream_watermark_timestamp_seconds",
    "Time up to which a source's changes are in its sink; its age is time() minus this.",
    ["stream"],
)

# --- Build
BUILD = Info("millstream_build", "Version of this program.")
BUILD.info({"version": version("millstream")})

PER_PARTITION = (PARTITION_LAG_RECORDS, PARTITION_LAG_SECONDS)
"""The only ones with a label `partition`. Streams of a topic per instance have none of them."""
PARTITION_SERIES = 100
"""A stream with more partitions on one worker has none of them either."""


def declared() -> dict[str, MetricWrapperBase]:
    """All metrics by the name of their constant, in the order of this file."""
    return {name: value for name, value in globals().items() if isinstance(value, MetricWrapperBase)}


# ---------------------------------------------------------------------- names of streams
_PER_INSTANCE = re.compile(r"(.*\brdb\.records)\..+")
_patterns: list[tuple[re.Pattern[str], str]] = []


def streams_by_pattern(patterns: Iterable[re.Pattern[str]]) -> None:
    """Every topic of such a pattern is one stream, named by what all its topics begin with."""
    _patterns[:] = [(pattern, _literal_start(pattern.pattern)) for pattern in patterns]
    _label.cache_clear()


def stream_label(topic: str, namespace: str = "") -> str:
    """The bounded name of a topic's stream: `rdb.records` for every `<namespace>rdb.records.<cluster>.<instance>`."""
    return _label(topic).removeprefix(namespace)


@lru_cache(maxsize=10_000)
def _label(topic: str) -> str:
    for pattern, label in _patterns:
        if pattern.fullmatch(topic):
            return label
    m = _PER_INSTANCE.fullmatch(topic)
    return m[1] if m else topic


def _literal_start(pattern: str) -> str:
    """`rdb.records` of `rdb\\.records\\.[a-z]+`; the pattern itself if its topics have no beginning in common."""
    plain = re.sub(r"\\.", "", pattern)
    while plain != (inner := re.sub(r"\([^()]*\)", "", plain)):
        plain = inner
    start = ""
    for part in re.finditer(r"\\(\W)|([\w-])|(.)", pattern):
        if part[3] is not None:
            start = start[:-1] if part[3] in "*?{" else start  # the character before these may be missing
            break
        start += part[1] or part[2]
    return pattern if "|" in plain or not start else start.rstrip("._-")
