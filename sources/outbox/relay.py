"""The relay that polls: claims events from the table, brings them to Kafka, marks them as published.

At least once: what is in Kafka and not yet marked when a relay dies goes out again, under the same event_id (T53).
Order within an aggregate: the first time that a reader sees version n, it has seen all earlier ones (T50).
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from millstream import metrics, tracing
from millstream.errors import BrokerError, PostgresUnavailableError
from millstream.failpoints import declare, failpoint
from millstream.logs import get_logger
from millstream.postgres import Connection, connect, naming
from millstream.settings import Settings
from schemas.postgres import require_migrated
from sources.outbox.message import Message, UnfitEventError, message_of
from sources.outbox.publisher import Publisher
from sources.outbox.store import CHANNEL, Failure, OutboxStore

if TYPE_CHECKING:
    from asyncpg import Record

CLAIMED = declare("outbox.claimed", "rows are leased, nothing is published")
PUBLISHED = declare("outbox.published", "Kafka has acknowledged, nothing is marked")
MARKED = declare("outbox.marked", "what is published is marked, failures are not yet noted")
LOOK_SECONDS = 10.0
"""Between two looks at the backlog, for the metrics."""

log = get_logger(__name__)


@dataclass(slots=True)
class Outcome:
    """What became of a claim; written back as soon as Postgres answers."""

    token: str
    published: list[int] = field(default_factory=list)
    failed: dict[int, Failure] = field(default_factory=dict)
    untried: list[int] = field(default_factory=list)
    outage: bool = False


class PollingRelay:
    """One relay. Several may run, on any hosts: each row goes to one of them."""

    def __init__(self, settings: Settings, url: str, *, leftovers: bool = False) -> None:
        """`url` of Postgres. `leftovers`: take only what failed or was requeued (beside a `ReplicationRelay`)."""
        self._settings, self._url, self._leftovers = settings, url, leftovers
        self._store, self._publisher = OutboxStore(settings), Publisher(settings)
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        self._wake = asyncio.Event()
        self._stopping = False
        self._debt: Outcome | None = None
        self._kafka_away = False
        self._quiet = 0
        self._looked = 0.0
        self._told: Look | None = None
        self.published = 0
        """Events acknowledged by Kafka so far."""

    def stop(self) -> None:
        """End after the batch that is under way."""
        self._stopping = True
        self._wake.set()

    def wake(self, *_: object) -> None:
        """Look at the table now."""
        self._wake.set()

    async def run(self) -> None:
        """Until `stop`. Waits out Postgres and Kafka. Raises BrokerError, PostgresError, ConfigError at the start."""
        await self._prepare()
        while not self._stopping:
            try:
                await self._connected()
            except PostgresUnavailableError as e:
                log.warning("outbox_postgres_away", description=f"{e}. Nothing is lost; the relay tries again")
                await self._pause(None)
        self._publisher.close()

    async def _prepare(self) -> None:
        while not self._stopping:
            try:
                await asyncio.to_thread(self._publisher.prepare)
            except BrokerError as e:
                if not self._leftovers:
                    raise
                log.warning("outbox_kafka_away", description=f"{e}. Nothing is lost; the relay tries again")
                self._wake.clear()
                await self._pause(None)
            else:
                return

    async def drain(self) -> int:
        """Publish until nothing can be claimed now; how many events. Raises PostgresError, BrokerError."""
        await asyncio.to_thread(self._publisher.prepare)
        with naming("relay events", self._url):
            async with connect(self._url, "millstream-outbox") as connection:
                await require_migrated(connection)
                await self._look(connection)
                while await self._step(connection) and not (self._stopping or self._kafka_away):
                    pass
                await self._look(connection)
        self._publisher.close()
        return self.published

    async def _connected(self) -> None:
        with naming("relay events", self._url):
            async with connect(self._url, "millstream-outbox") as connection:
                await require_migrated(connection)
                connection.add_termination_listener(self.wake)
                await connection.add_listener(CHANNEL, self._notified)
                log.info("outbox_relay_started", topics=",".join(self._publisher.topics.values()), relay=self._name)
                while not self._stopping:
                    if await self._step(connection):
                        self._quiet = 0
                    elif not self._stopping:
                        await self._pause(await self._store.next_due(connection))
                    if time.monotonic() - self._looked >= LOOK_SECONDS:
                        await self._look(connection)
                if self._debt is not None:
                    await self._settle(connection)

    async def _step(self, connection: Connection) -> int:
        """One claim, one publication, one write-back; how many events were claimed."""
        if self._debt is not None:
            await self._settle(connection)
        if self._kafka_away and not await asyncio.to_thread(self._publisher.answers):
            return 0
        self._kafka_away = False
        self._wake.clear()
        token, began = f"{self._name}-{secrets.token_hex(8)}", time.monotonic()
        rows = await self._store.claim(connection, token, leftovers=self._leftovers)
        if not rows:
            return 0
        failpoint(CLAIMED)
        self._debt = Outcome(token, untried=[row["seq"] for row in rows])  # if the next line is cancelled
        if time.monotonic() - began < self._settings.outbox_lease / 2:  # else we were paused: others may have them
            self._debt = await self._publish(token, rows)
        failpoint(PUBLISHED)
        await self._settle(connection)
        return len(rows)

    async def _publish(self, token: str, rows: Sequence[Record]) -> Outcome:
        outcome = Outcome(token)
        seqs: list[int] = []
        messages: list[Message] = []
        stuck: set[tuple[str, str]] = set()
        for row in rows:
            aggregate = row["aggregate_type"], row["key"]
            if aggregate in stuck:
                outcome.untried.append(row["seq"])
                continue
            try:
                message = message_of(row, self._publisher.topics)
                why = self._publisher.unfit(message)
            except UnfitEventError as e:
                why = str(e)
            if why is None:
                seqs.append(row["seq"])
                messages.append(message)
            else:
                stuck.add(aggregate)
                outcome.failed[row["seq"]] = Failure(why, counts=True, final=True)
        began = time.monotonic()
        with tracing.span("outbox publish", attributes={"messaging.batch.message_count": len(messages)}):
            results = await asyncio.to_thread(self._publisher.publish, messages, self._settings.outbox_publish_timeout)
        for seq, result in zip(seqs, results, strict=True):
            if result is True:
                outcome.published.append(seq)
            elif isinstance(result, Failure):
                outcome.failed[seq] = result
            else:
                outcome.untried.append(seq)
        outcome.outage = any(not failure.counts for failure in outcome.failed.values())
        self._kafka_away = outcome.outage
        self.published += len(outcome.published)
        _measure(rows, outcome, time.monotonic() - began)
        return outcome

    async def _settle(self, connection: Connection) -> None:
        """Write back. Fails while Postgres is away, and is then done first when it is back."""
        debt = self._debt
        assert debt is not None
        marked = await self._store.mark(connection, debt.token, debt.published) if debt.published else 0
        lost, debt.published = len(debt.published) - marked, []
        failpoint(MARKED)
        if debt.failed:
            told = await self._store.fail(connection, debt.token, debt.failed)
            lost, debt.failed = lost + len(debt.failed) - len(told), {}
            self._tell(told, debt.outage)
        if debt.untried:
            lost += len(debt.untried) - await self._store.release(connection, debt.token, debt.untried)
        self._debt = None
        if lost:
            metrics.OUTBOX_LEASES_LOST.inc(lost)
            log.warning(
                "outbox_leases_lost",
                events=lost,
                description="another relay took them over: they may be published twice. Is MILLSTREAM_OUTBOX_LEASE "
                "too short, or was this process paused?",
            )

    def _tell(self, rows: Sequence[Record], outage: bool) -> None:
        parked = [row for row in rows if row["parked_at"] is not None]
        for row in parked:
            log.error(
                "outbox_event_parked",
                event_id=row["event_id"],
                aggregate_id=row["aggregate_id"],
                version=row["version"],
                attempts=row["delivery_attempts"],
                held_back=row["held"],
                error=row["last_error"],
                description="given up, and with it all later events of its aggregate: see `millstream outbox stats`",
            )
        waiting = [row for row in rows if row["parked_at"] is None]
        for row in waiting[:1] if outage else waiting:
            log.warning(
                "outbox_publish_failed",
                event_id=row["event_id"],
                aggregate_id=row["aggregate_id"],
                version=row["version"],
                attempts=row["delivery_attempts"],
                next_attempt=row["available_at"].isoformat(),
                error=row["last_error"],
                events=len(waiting) if outage else 1,
                description="tried again later; the later events of the aggregate wait for it",
            )

    async def _look(self, connection: Connection) -> None:
        self._looked = time.monotonic()
        stats = await self._store.stats(connection)
        gauge(stats)
        if not self._leftovers:  # else the relay that it belongs to tells
            self._told = tell_progress(self._told, self.published, stats)

    async def _pause(self, due: float | None) -> None:
        """Full jitter, growing while nothing comes; a notification ends it, and so does a row that comes due."""
        s = self._settings
        bound = min(s.outbox_poll_max, s.outbox_poll_min * 2 ** min(self._quiet, 30))
        self._quiet += 1
        wait = random.uniform(0, bound)
        if due is not None and not self._kafka_away:
            wait = min(wait, due)
        try:
            await asyncio.wait_for(self._wake.wait(), max(wait, 0.01))
        except TimeoutError:
            return
        if not self._kafka_away:
            self._quiet = 0

    def _notified(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        if payload or not self._leftovers:
            self._wake.set()


class Look(NamedTuple):
    """What a look at the table found."""

    published: int
    """Events that this relay had published by then."""
    backlog: int


def tell_progress(before: Look | None, published: int, stats: Mapping[str, Any]) -> Look:
    """One line for what was published since the look before; none if nothing was (RO-42)."""
    now = Look(published, stats["pending"])
    if before is not None and now.published > before.published:
        log.info(
            "outbox_progress",
            published=now.published - before.published,
            backlog_before=before.backlog,
            backlog_after=now.backlog,
            oldest_seconds=round(stats["oldest_seconds"], 1),
            retrying=stats["retrying"],
            description="since the last look at the table",
        )
    return now


def gauge(stats: Mapping[str, Any]) -> None:
    """Put the state of the table into the metrics."""
    metrics.OUTBOX_BACKLOG.set(stats["pending"])
    metrics.OUTBOX_OLDEST.set(stats["oldest_seconds"])
    metrics.OUTBOX_PARKED.set(stats["parked"])
    metrics.OUTBOX_HELD.set(stats["held"])
    metrics.OUTBOX_MAX_ATTEMPTS.set(stats["max_attempts"])


def _measure(rows: Sequence[Record], outcome: Outcome, seconds: float) -> None:
    metrics.OUTBOX_BATCH.observe(len(rows))
    metrics.OUTBOX_LATENCY.observe(seconds)
    published = set(outcome.published)
    by_type: dict[str, list[int]] = {}
    for row in rows:
        counts = by_type.setdefault(row["aggregate_type"], [0, 0, 0, 0])
        counts[0] += row["seq"] in published
        counts[1] += row["seq"] in outcome.failed
        counts[2] += row["delivery_attempts"] > 0
        counts[3] += len(row["payload"]) if row["seq"] in published else 0
    for kind, (done, failed, again, size) in by_type.items():
        metrics.OUTBOX_PUBLISHED.labels(kind).inc(done)
        metrics.OUTBOX_BYTES.labels(kind).inc(size)
        metrics.OUTBOX_FAILED.labels(kind).inc(failed)
        metrics.OUTBOX_RETRIES.labels(kind).inc(again)
    if published:
        metrics.OUTBOX_LAST.set_to_current_time()
        metrics.OUTBOX_FAILING.set(0)
    elif outcome.failed:
        metrics.OUTBOX_FAILING.inc()
    oldest = min(row["occurred_at"] for row in rows).timestamp()
    metrics.OUTBOX_LAG.observe(max(0.0, time.time() - oldest))
    log.debug(
        "outbox_batch",
        events=len(rows),
        published=len(published),
        failed=len(outcome.failed),
        seconds=round(seconds, 3),
    )
