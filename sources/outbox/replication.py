"""The relay that reads a replication slot: no polling, events in the order of their commits.

The position in the WAL stands in the same Kafka transaction as the records (`sources.transactional`), so a relay that
is killed anywhere goes on behind the last record that readers of committed records can see: nothing is sent twice. Then
the rows are marked in the table, and only then the slot is confirmed; after a crash in between they are marked again.

What cannot be sent is left to a polling relay that runs beside it and takes such rows only: events that Kafka cannot
take (parked), later ones of their aggregates, delayed and requeued ones, and rows from before the slot.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from millstream import metrics, tracing
from millstream.errors import BrokerError, PostgresUnavailableError
from millstream.failpoints import declare, failpoint
from millstream.logs import get_logger
from millstream.postgres import Connection, connect, naming
from millstream.settings import Settings
from schemas.postgres import require_migrated
from sources.outbox.message import Message, UnfitEventError, message_of
from sources.outbox.pgoutput import Begin, Commit, Insert
from sources.outbox.publisher import Publisher, tell_published
from sources.outbox.relay import LOOK_SECONDS, Look, PollingRelay, gauge, tell_progress
from sources.outbox.slot import SQL, check_slot, create_slot, slot_stats, warn_unbounded
from sources.outbox.store import CLAIM_BYTES, OutboxStore
from sources.outbox.wal_events import Event, values_of
from sources.outbox.walstream import Server, SlotBusyError, WalStream, open_stream
from sources.transactional import TransactionalSource

RECEIVED = declare("outbox.wal.received", "a batch is read, nothing is sent")
PRODUCED = declare("outbox.wal.produced", "the batch is in Kafka, its transaction is open")
COMMITTED = declare("outbox.wal.committed", "batch and position are committed, no row is marked")
MARKED = declare("outbox.wal.marked", "the rows are marked, the slot is not confirmed")
TABLE = "catalog.outbox_events"
READ_SECONDS = 1.0
LINGER_SECONDS = 0.005
STATUS_SECONDS = 10.0
"""Between two questions how far the server is."""
STANDBY_SECONDS = 5.0
"""Between two looks whether the slot is free."""

log = get_logger(__name__)


class Position(msgspec.Struct, frozen=True, array_like=True):
    """How far a server's WAL is in Kafka; kept there as JSON."""

    server: Server
    lsn: int = 0
    """All transactions that end here or before."""
    open_lsn: int = 0
    open_rows: int = 0
    """And so many events of the transaction that commits at `open_lsn`: large ones are sent in parts."""

    def covers(self, commit_lsn: int, number: int) -> bool:
        """Whether event `number` (from 1) of the transaction that commits there is in Kafka."""
        return commit_lsn < self.lsn or (commit_lsn == self.open_lsn and number <= self.open_rows)


class ReplicationRelay:
    """One relay. Of several, one reads from the slot; the others wait until it is free."""

    def __init__(self, settings: Settings, url: str) -> None:
        """`url` of Postgres, of a user who may replicate."""
        self._settings, self._url = settings, url
        self._publisher, self._store = Publisher(settings), OutboxStore(settings)
        self._leftovers = PollingRelay(settings, url, leftovers=True)
        self._name = f"{settings.group_id}-outbox-{settings.outbox_slot}"
        self._position = Position(Server("", 0))
        self._wake = asyncio.Event()
        self._stopping = False
        self._failures = 0
        self._looked = 0.0
        self._told: Look | None = None
        self._sent = 0

    @property
    def published(self) -> int:
        """Events acknowledged by Kafka so far."""
        return self._sent + self._leftovers.published

    def stop(self) -> None:
        """End after the batch that is under way."""
        self._stopping = True
        self._leftovers.stop()
        self._wake.set()

    async def create(self) -> bool:
        """Make publication and slot if they are missing; whether the slot is new. Raises ConfigError, PostgresError."""
        with naming("create the replication slot", self._url):
            async with connect(self._url, "millstream-outbox") as connection:
                await require_migrated(connection)
                return await create_slot(connection, self._settings.outbox_slot, self._settings.outbox_publication)

    async def run(self) -> None:
        """Until `stop`. Waits out Postgres and Kafka. Raises ConfigError, PostgresError, BrokerError (at the start)."""
        with naming("look for the replication slot", self._url):
            async with connect(self._url, "millstream-outbox") as connection:
                await require_migrated(connection)
                await check_slot(connection, self._settings.outbox_slot, self._settings.outbox_publication)
                await warn_unbounded(connection, self._settings.outbox_slot)
        await asyncio.to_thread(self._publisher.prepare)
        leftovers = asyncio.create_task(self._leftovers.run())
        try:
            while not self._stopping:
                if leftovers.done():
                    break
                await self._try()
        finally:
            self._leftovers.stop()
            await leftovers

    async def _try(self) -> None:
        try:
            with naming("relay events from the WAL", self._url):
                async with connect(self._url, "millstream-outbox") as connection:
                    await self._connected(connection)
        except SlotBusyError as e:
            if not self._failures:
                log.info("outbox_standby", description=f"another relay is active; this one waits for the slot: {e}")
            await self._pause(STANDBY_SECONDS)
        except PostgresUnavailableError as e:
            log.warning("outbox_postgres_away", description=f"{e}. Nothing is lost; the relay tries again")
            await self._pause(self._settings.outbox_poll_max)
        except BrokerError as e:
            metrics.OUTBOX_FAILING.inc()
            log.warning("outbox_kafka_away", description=f"{e}. Nothing is lost; the relay tries again")
            await self._pause(self._settings.outbox_poll_max)

    async def _connected(self, connection: Connection) -> None:
        s = self._settings
        await check_slot(connection, s.outbox_slot, s.outbox_publication)
        await asyncio.to_thread(self._publisher.prepare)
        horizon = await connection.fetchrow(SQL["horizon"], list(self._publisher.topics))
        assert horizon is not None
        async with open_stream(self._url, s.outbox_slot, s.outbox_publication, s.outbox_lease) as stream:
            # The slot is ours: only now whoever had it before is fenced, and its open transaction decided.
            topic = next(iter(self._publisher.topics.values()))
            source = await asyncio.to_thread(TransactionalSource, s, self._name, topic, int(s.max_message_bytes))
            self._position = _continue(await asyncio.to_thread(source.position), stream.server)
            log.info("outbox_replication_started", slot=s.outbox_slot, lsn=_lsn(self._position.lsn))
            await _Pump(self, connection, stream, source, horizon["seqs"], horizon["lsn"]).run()

    async def _pause(self, longest: float) -> None:
        s = self._settings
        bound = min(longest, s.outbox_poll_min * 2 ** min(self._failures, 30))
        self._failures += 1
        try:
            await asyncio.wait_for(self._wake.wait(), max(0.01, random.uniform(0, bound)))
        except TimeoutError:
            return


class _Pump:
    """One connection's life: from the stream to Kafka, to the table, and back to the slot."""

    def __init__(
        self,
        relay: ReplicationRelay,
        connection: Connection,
        stream: WalStream,
        source: TransactionalSource,
        horizon_seqs: list[int],
        horizon_lsn: int,
    ) -> None:
        self._relay, self._db, self._stream, self._source = relay, connection, stream, source
        self._horizon: tuple[list[int], int] | None = (horizon_seqs, horizon_lsn)
        self._settings = relay._settings
        self._batch: list[Event] = []
        self._bytes = 0
        self._done_lsn = 0  # of what this connection has brought: the slot may lag behind the position
        self._commit_lsn = self._number = 0  # of the transaction that is being read; 0: none

    async def run(self) -> None:
        asked = time.monotonic()
        self._stream.ask()
        while not self._relay._stopping:
            # Inside a transaction more is on its way; behind it, what has piled up since the last batch comes at once.
            messages = await self._stream.read(LINGER_SECONDS if self._batch and not self._commit_lsn else READ_SECONDS)
            for message in messages:
                self._take(message)
                if len(self._batch) >= self._settings.outbox_batch_size or self._bytes >= CLAIM_BYTES:
                    await self._flush()
            if not messages:
                await self._flush()
                await self._idle()
            if time.monotonic() - asked >= (READ_SECONDS if self._horizon else STATUS_SECONDS):
                asked = time.monotonic()
                self._stream.ask()
            if time.monotonic() - self._relay._looked >= LOOK_SECONDS:
                await self._look()

    def _take(self, message: Begin | Insert | Commit) -> None:
        match message:
            case Begin(commit_lsn):
                self._commit_lsn, self._number = commit_lsn, 0
            case Commit(end_lsn):
                self._done_lsn, self._commit_lsn = end_lsn, 0
            case Insert(relation, row) if relation == TABLE:
                self._number += 1
                event = Event(values_of(row), self._commit_lsn, self._number)
                if event.row["aggregate_type"] in self._relay._publisher.topics:
                    self._batch.append(event)
                    self._bytes += len(event.row["payload"])

    async def _idle(self) -> None:
        """All that came is done."""
        if self._commit_lsn:
            return
        lsn = max(self._done_lsn, self._stream.idle_lsn)
        if lsn > self._done_lsn:
            self._done_lsn = lsn
            self._stream.confirm(lsn)
        if self._horizon is not None and lsn >= self._horizon[1]:
            status = await self._db.execute(SQL["orphans"], self._horizon[0])
            self._horizon = None
            if status != "UPDATE 0":
                self._relay._leftovers.wake()
                log.info(
                    "outbox_orphans",
                    events=int(status.rpartition(" ")[2]),
                    description="rows from before the slot, which are not in the stream: they are sent by polling",
                )

    async def _flush(self) -> None:
        batch, self._batch, self._bytes = self._batch, [], 0
        if not batch:
            return
        relay, began = self._relay, time.monotonic()
        again, fresh = list[Event](), list[Event]()
        for event in batch:
            (again if relay._position.covers(event.commit_lsn, event.number) else fresh).append(event)
        events, messages = await self._sift(batch, fresh)
        failpoint(RECEIVED)
        if messages:
            done = max(self._done_lsn, relay._position.lsn)
            position = Position(self._stream.server, done, self._commit_lsn, self._number)
            with tracing.span("outbox publish", attributes={"messaging.batch.message_count": len(messages)}):
                await asyncio.to_thread(self._send, messages, position)
            relay._position = position
            relay._sent += len(messages)
        failpoint(COMMITTED)
        if again:  # sent by an earlier life: all but those that it left to polling
            await self._db.execute(SQL["mark"], [e.seq for e in again], True)
        if events:
            await self._db.execute(SQL["mark"], [e.seq for e in events], False)
            _measure(events, time.monotonic() - began)
        failpoint(MARKED)
        self._stream.confirm(self._done_lsn)
        relay._failures = 0

    def _send(self, messages: Sequence[Message], position: Position) -> None:
        for topic, key, value, headers in messages:
            self._source.send(key, value, headers, topic=topic)
        self._source.flush()
        failpoint(PRODUCED)
        self._source.commit(self._relay._sent, msgspec.json.encode(position).decode())
        if logging.getLogger(__name__).isEnabledFor(logging.DEBUG):
            for message in messages:
                tell_published(message.headers, f"{message.topic} {_lsn(position.lsn)}")

    async def _sift(self, batch: Sequence[Event], fresh: Sequence[Event]) -> tuple[list[Event], list[Message]]:
        """What can be sent now; the rest is left to polling, on record in the table before anything is sent."""
        rows = [e.row for e in fresh]
        held = {
            row["seq"]
            for row in await self._db.fetch(
                SQL["held"], [r["seq"] for r in rows], [r["aggregate_id"] for r in rows], [r["version"] for r in rows],
                [r["aggregate_type"] for r in rows], [e.seq for e in batch],
            )
        }  # fmt: skip
        soon = datetime.now(UTC) + timedelta(seconds=1)
        left: list[tuple[int, str, bool]] = []
        stuck: set[tuple[str, str]] = set()
        events: list[Event] = []
        messages: list[Message] = []
        for event in fresh:
            why, parked = "", False
            if event.aggregate in stuck or event.seq in held:
                why = "waits for an earlier event of its aggregate"
            elif event.row["available_at"] > soon:
                why = "not due yet"
            else:
                try:
                    message = message_of(event.row, self._relay._publisher.topics)
                    why = self._relay._publisher.unfit(message) or ""
                except UnfitEventError as e:
                    why = str(e)
                parked = bool(why)
            if why:
                stuck.add(event.aggregate)
                left.append((event.seq, why, parked))
                if parked:
                    _tell_parked(event, why)
            else:
                events.append(event)
                messages.append(message)
        if left:
            await self._db.execute(SQL["leave"], *(list(column) for column in zip(*left, strict=True)))
            self._relay._leftovers.wake()
        return events, messages

    async def _look(self) -> None:
        self._relay._looked = time.monotonic()
        stats = await self._relay._store.stats(self._db)
        gauge(stats)
        self._relay._told = tell_progress(self._relay._told, self._relay.published, stats)
        slot = await slot_stats(self._db, self._settings.outbox_slot)
        if slot is None:
            return
        kept, safe = slot["kept_bytes"] or 0, slot["safe_wal_size"]
        metrics.OUTBOX_WAL_BYTES.set(kept)
        if slot["wal_status"] in ("unreserved", "lost") or (safe is not None and safe < kept):
            log.warning(
                "outbox_wal_lag",
                slot=slot["slot_name"],
                kept_bytes=kept,
                left_bytes=safe,
                wal_status=slot["wal_status"],
                description="more than half of max_slot_wal_keep_size is used: past it the slot is lost",
            )


def _continue(text: str | None, server: Server) -> Position:
    """The position in Kafka, if it is one of this server's: LSNs of another one say nothing (it begins at the slot)."""
    if text:
        try:
            found = msgspec.json.decode(text, type=Position)
        except msgspec.MsgspecError as e:
            raise BrokerError(f"the position of the outbox in Kafka is not one of ours ({e}): {text[:200]}") from e
        if found.server == server:
            return found
        log.warning(
            "outbox_position_foreign",
            description=f"Kafka's position is of {found.server}, this is {server}: restored, or failed over? The relay "
            "begins at the slot; some events may go out twice",
        )
    return Position(server)


def _tell_parked(event: Event, why: str) -> None:
    log.error(
        "outbox_event_parked",
        event_id=str(event.row["event_id"]),
        aggregate_id=event.row["key"],
        version=event.row["version"],
        error=why,
        description="given up, and with it all later events of its aggregate: see `millstream outbox stats`",
    )


def _measure(events: Sequence[Event], seconds: float) -> None:
    metrics.OUTBOX_BATCH.observe(len(events))
    metrics.OUTBOX_LATENCY.observe(seconds)
    by_type: dict[str, int] = {}
    for event in events:
        by_type[event.row["aggregate_type"]] = by_type.get(event.row["aggregate_type"], 0) + 1
    for kind, count in by_type.items():
        metrics.OUTBOX_PUBLISHED.labels(kind).inc(count)
        metrics.OUTBOX_BYTES.labels(kind).inc(
            sum(len(e.row["payload"]) for e in events if e.row["aggregate_type"] == kind)
        )
    metrics.OUTBOX_LAST.set_to_current_time()
    metrics.OUTBOX_FAILING.set(0)
    oldest = min(event.row["occurred_at"] for event in events)
    metrics.OUTBOX_LAG.observe(max(0.0, (datetime.now(UTC) - oldest).total_seconds()))


def _lsn(lsn: int) -> str:
    """As Postgres writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
