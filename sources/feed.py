"""Feeds dumps into Kafka, each row exactly once, however often the feeder is killed and started again (hole e).

A run's messages are `begin`, many `rows`, `done`; if the dump turns out to be corrupt, `abort`. Every transaction holds
some of them and the position in the file behind them. Started again for the same batch and instance, the feeder goes
on there under the same run id; a file that was fed to its end is not fed again.

The dump of a Redis cannot be read from its middle: there every attempt is a new run, which voids the one before.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec
import pyarrow as pa

from millstream import tracing
from millstream.cluster import Cluster, client_config, new_topic
from millstream.errors import ConfigError, CorruptSourceError, MillstreamError
from millstream.failpoints import declare, failpoint
from millstream.logs import error_chain, get_logger
from millstream.settings import Settings
from schemas.batch import Batch, Run
from schemas.control import ABORT, BEGIN, DATA, DONE, Abort, Begin, Done, add_digest, headers_of, listed_twice
from schemas.names import dlq_topic, records_topic, shared_records_topic
from schemas.records import WIRE
from sources.origin import Origin, OriginId, origin_of
from sources.rdb import ByteSource, Position, RdbReader
from sources.redis import RedisEndpoint, RedisSourceError, TransferDroppedError
from sources.transactional import TransactionalSource

BEGUN = declare("feed.begun", "the begin record is produced, nothing committed")
ROWS_PRODUCED = declare("feed.rows_produced", "a rows message is produced, not committed")
BEFORE_COMMIT = declare("feed.before_commit", "records are produced, their transaction is not committed")
AFTER_COMMIT = declare("feed.after_commit", "a transaction with records and the position behind them is committed")
DONE_PRODUCED = declare("feed.done", "the done record is produced, not committed")

TRANSFERS = 3
"""Attempts at the dump of a Redis that breaks off in the middle."""

TXN_MESSAGES = 32
TXN_BYTES = 16 << 20
TXN_SECONDS = 1.0
"""A transaction is committed at whichever comes first: a commit takes 10 ms, and readers see rows only after it."""

_AHEAD = 4
"""Batches that are parsed ahead of what is sent: bounds memory, and keeps a slow disk from holding a transaction."""

log = get_logger(__name__)


class RecordTooLargeError(MillstreamError):
    """One row does not fit into a message."""


class Saved(msgspec.Struct, kw_only=True):
    """The feeder's position, in the metadata of its group offset (4096 bytes at most)."""

    topic_id: str
    run: str
    batch_ts: int
    state: Literal["feeding", "done", "aborted"] = "feeding"
    file: OriginId
    at: dict[str, Any] | None = None
    """sources.rdb.Position; None before the first row."""
    rows: int = 0
    messages: int = 0
    digest: int = 0
    begin: int = -1
    """Offset of the begin record."""
    v: int = 1


class FeedJob(msgspec.Struct, frozen=True, kw_only=True):
    """One instance of a batch: an RDB file, or a Redis."""

    path: str = ""
    redis: RedisEndpoint | None = None
    """In place of a path."""
    slots: Literal["codis", "redis"] | None = None
    """Which slot column to fill: the source is a Codis, or a Redis Cluster."""
    cluster: str
    instance: str
    batch_ts: int
    """Nanoseconds since 1970-01-01 UTC."""
    instances: list[str]
    """All instances of the batch."""
    new_run: bool = False
    """Begin a new run whatever was fed before; it voids the older one."""

    @property
    def batch(self) -> Batch:
        """The batch."""
        return Batch(self.cluster, self.batch_ts)


class FeedResult(msgspec.Struct, frozen=True, kw_only=True):
    """How it went."""

    outcome: Literal["fed", "already", "aborted"]
    run: str
    rows: int
    resumed: bool = False
    reason: str = ""


OnProgress = Callable[[int, int], None]
"""Called with rows that are through, and bytes of the dump; also while a Redis prepares its dump."""


def topics_of(settings: Settings, job: FeedJob) -> tuple[str, int]:
    """Topic of a job's records, and the partitions to create it with."""
    if settings.topic_layout == "shared":
        return shared_records_topic(settings.namespace), settings.shared_topic_partitions
    return records_topic(job.cluster, job.instance, settings.namespace), 1


def prepare_topics(settings: Settings, jobs: list[FeedJob]) -> Cluster:
    """Create what is missing, dead-letter topics too. Blocking. Raises BrokerError, ConfigError (T8)."""
    wanted = dict(topics_of(settings, job) for job in jobs)
    cluster = Cluster(client_config(settings), settings.request_timeout)
    # With more than one partition the order of an instance's records would be lost: create() refuses other counts.
    declared = [new_topic(settings, name, partitions) for name, partitions in wanted.items()]
    cluster.create(declared + [new_topic(settings, dlq_topic(name), 1) for name in wanted])
    return cluster


def feed_file(settings: Settings, job: FeedJob, on_progress: OnProgress = lambda _rows, _bytes: None) -> FeedResult:
    """Feed one dump; blocking. A corrupt one is `aborted`. Raises ConfigError, BrokerError, RedisSourceError."""
    if twice := listed_twice(job.instances):
        raise ConfigError(
            f"the manifest of batch {job.batch.rfc3339} lists instance {twice!r} twice, and could never be complete: "
            "name each instance once"
        )
    with origin_of(job.path, job.redis, settings) as origin:
        topic = topics_of(settings, job)[0]
        cluster = prepare_topics(settings, [job])
        topic_id = cluster.topics([topic])[topic].id
        name = f"{settings.group_id}-feed-{records_topic(job.cluster, job.instance)}"
        limit = min(int(settings.max_message_bytes), int(cluster.topic_config(topic, "max.message.bytes")))
        source = TransactionalSource(settings, name, topic, limit)
        raw = source.position()
        before = msgspec.json.decode(raw, type=Saved) if raw else None
        saved = _continue(before, job, topic_id, origin)
        if saved.state == "done":
            log.info("feed_already_done", instance=job.instance, description=f"{saved.file} was fed to its end before")
            on_progress(saved.rows, origin.size)
            return FeedResult(outcome="already", run=saved.run, rows=saved.rows)
        with tracing.span("feed", attributes={"messaging.destination.name": topic, "millstream.source": origin.label}):
            return _Feeder(source, job, saved, limit, topic, origin).feed(on_progress)


def _continue(saved: Saved | None, job: FeedJob, topic_id: str, origin: Origin) -> Saved:
    """The position to go on from: the saved one, or that of a new run."""
    same_batch = saved is not None and (saved.topic_id, saved.batch_ts) == (topic_id, job.batch_ts)
    fresh = saved is None or not same_batch or saved.state == "aborted" or job.new_run
    if saved is None or fresh or (saved.state == "feeding" and not origin.resumable):
        return Saved(topic_id=topic_id, run=secrets.token_hex(16), batch_ts=job.batch_ts, file=origin.id)
    if not saved.file.same(origin.id):
        raise ConfigError(
            f"instance {job.instance!r} of batch {job.batch.rfc3339} was fed from {saved.file}, now it is {origin.id}: "
            "another file. Give the same one, another --batch-timestamp, or --new-run to begin anew with this one"
        )
    return saved


class _Parsed(NamedTuple):
    batch: pa.RecordBatch
    position: Position


class _Feeder:
    """One life of one run; of several, if a Redis drops its dump."""

    def __init__(
        self, source: TransactionalSource, job: FeedJob, saved: Saved, limit: int, topic: str, origin: Origin
    ) -> None:
        self._source, self._job, self._saved, self._limit, self._topic = source, job, saved, limit, topic
        self._origin = origin
        self._run = Run(job.batch, job.instance, saved.run)
        self._key = job.instance.encode()
        headers = headers_of(DATA, self._run, 10**7)
        self._overhead = 200 + len(self._key) + sum(len(k) + len(v) + 10 for k, v in headers)
        self._pending_messages = self._pending_bytes = 0
        self._since = 0.0

    def feed(self, on_progress: OnProgress) -> FeedResult:
        """To the end of the dump, or of what it can give."""
        origin, dropped = self._origin, 0
        while True:
            try:
                opened = origin.open(lambda: on_progress(self._saved.rows, origin.received))
                if dropped:
                    self._begin_anew()
                return self._feed(opened, on_progress)
            except TransferDroppedError as exc:
                dropped += 1
                if dropped == TRANSFERS:
                    return self._abort(f"{exc}. It was begun {dropped} times", False)
                log.warning(
                    "redis_transfer_retry",
                    instance=self._job.instance,
                    retry=dropped,
                    error_chain=error_chain(exc),
                    description="the dump broke off; it is begun anew as another run, which voids this one",
                )
                if self._pending_messages:
                    self._commit()  # no transaction stays open while the server prepares the next one
            except RedisSourceError as exc:
                if not dropped:
                    raise  # nothing was begun, nobody waits
                return self._abort(str(exc), False)

    def _begin_anew(self) -> None:
        old = self._saved
        self._saved = Saved(topic_id=old.topic_id, run=secrets.token_hex(16), batch_ts=old.batch_ts, file=old.file)
        self._run = Run(self._job.batch, self._job.instance, self._saved.run)

    def _feed(self, opened: ByteSource, on_progress: OnProgress) -> FeedResult:
        saved, origin, resumed = self._saved, self._origin, self._saved.begin >= 0
        if not resumed:
            self._begin()
        seen = origin.received
        try:
            for parsed in self._parsed(opened, Position(**saved.at) if saved.at else None):
                if parsed is not None:
                    self._send_rows(parsed)
                    on_progress(saved.rows, parsed.position.offset)
                elif seen != (seen := origin.received):
                    on_progress(saved.rows, seen)
                if self._due():
                    self._commit()
        except (CorruptSourceError, RecordTooLargeError, OSError) as exc:
            return self._abort(f"{origin.label}: {exc}" if isinstance(exc, OSError) else str(exc), resumed)
        self._source.flush()  # the begin record's offset is known then
        done = Done(rows=saved.rows, messages=saved.messages, digest=saved.digest, begin=saved.begin)
        self._control(DONE, done)
        failpoint(DONE_PRODUCED)
        saved.state = "done"
        self._commit()
        on_progress(saved.rows, origin.size)
        return FeedResult(outcome="fed", run=saved.run, rows=saved.rows, resumed=resumed)

    # ------------------------------------------------------------------ records
    def _begin(self) -> None:
        saved = self._saved

        def noted(offset: int) -> None:
            saved.begin = offset

        self._control(BEGIN, Begin(instances=self._job.instances, source=self._origin.about), noted)
        failpoint(BEGUN)

    def _control(self, kind: str, body: Begin | Done | Abort, on_offset: Any = None) -> None:
        self._send(msgspec.json.encode(body), headers_of(kind, self._run), on_offset)

    def _send(self, value: bytes, headers: list[tuple[str, bytes]], on_offset: Any = None) -> None:
        if not self._pending_messages:
            self._since = time.monotonic()
        self._source.send(self._key, value, headers, on_offset)
        self._pending_messages += 1
        self._pending_bytes += len(value)

    def _send_rows(self, parsed: _Parsed) -> None:
        saved = self._saved
        for batch, value in self._messages(parsed.batch):
            self._send(value, headers_of(DATA, self._run, batch.num_rows))
            saved.rows += batch.num_rows
            saved.messages += 1
            saved.digest = add_digest(saved.digest, [value])
            failpoint(ROWS_PRODUCED)
        saved.at = parsed.position.to_dict()

    def _messages(self, batch: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, bytes]]:
        """The batch as messages of a size that the topic takes (T14)."""
        value = _encode(batch)
        if len(value) + self._overhead <= self._limit:
            yield batch, value
        elif batch.num_rows > 1:
            half = batch.num_rows // 2
            yield from self._messages(batch.slice(0, half))
            yield from self._messages(batch.slice(half))
        else:
            key: bytes = batch.column("key")[0].as_py()
            raise RecordTooLargeError(
                f"{self._origin.label}: the key {key[:32].hex()}{'…' if len(key) > 32 else ''} (hex) in db "
                f"{batch.column('db')[0].as_py()} makes a message of {len(value) + self._overhead} bytes, topic "
                f"{self._topic!r} takes {self._limit}. Raise MILLSTREAM_MAX_MESSAGE_BYTES for the feeder and all "
                f"workers, and max.message.bytes of the topic and of its .dlq"
            )

    # ------------------------------------------------------------------ transactions
    def _due(self) -> bool:
        return self._pending_messages > 0 and (
            self._pending_messages >= TXN_MESSAGES
            or self._pending_bytes >= TXN_BYTES
            or time.monotonic() - self._since >= TXN_SECONDS
        )

    def _commit(self) -> None:
        self._source.flush()
        failpoint(BEFORE_COMMIT)
        self._source.commit(self._saved.messages, msgspec.json.encode(self._saved).decode())
        self._pending_messages = self._pending_bytes = 0
        failpoint(AFTER_COMMIT)

    def _abort(self, reason: str, resumed: bool) -> FeedResult:
        """RU-68, T28: on record for the batch, so that nobody waits for the instance."""
        self._control(ABORT, Abort(reason=reason[:2000]))
        self._saved.state = "aborted"
        self._commit()
        return FeedResult(outcome="aborted", run=self._saved.run, rows=self._saved.rows, resumed=resumed, reason=reason)

    # ------------------------------------------------------------------ parsing
    def _parsed(self, file: ByteSource, resume: Position | None) -> Iterator[_Parsed | None]:
        """Batches as a thread parses them; None at least every second, however long a batch takes to be read."""
        ahead: queue.Queue[_Parsed | BaseException | None] = queue.Queue(_AHEAD)
        stop = threading.Event()

        def put(item: _Parsed | BaseException | None) -> None:
            while not stop.is_set():
                try:
                    ahead.put(item, timeout=0.5)
                except queue.Full:
                    continue
                return

        def parse() -> None:
            try:
                reader = RdbReader(file, name=self._origin.name, resume=resume, slots=self._job.slots)
                for batch in reader:
                    put(_Parsed(batch, reader.position))
                    if stop.is_set():
                        return
                put(None)
            except BaseException as exc:  # noqa: BLE001 - raised again where the batches are taken
                put(exc)

        thread = threading.Thread(target=parse, name="rdb-parser", daemon=True)
        thread.start()
        try:
            while True:
                try:
                    item = ahead.get(timeout=TXN_SECONDS)
                except queue.Empty:
                    yield None
                    continue
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            if thread.is_alive():
                self._origin.stop()
            thread.join()


def _encode(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, WIRE) as writer:
        writer.write_batch(batch)
    value: bytes = sink.getvalue().to_pybytes()
    return value
