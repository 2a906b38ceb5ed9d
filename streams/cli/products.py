"""One run of the product ETL: feed, wait until the watermark's row says that all of it is in the sink, report."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from urllib.parse import urlsplit

from rich.console import Console
from rich.status import Status

from millstream.errors import MillstreamError
from millstream.postgres import Connection, connect, load, naming, postgres_url
from millstream.settings import Settings
from schemas.names import dlq_topic
from schemas.postgres import require_migrated
from schemas.products import BadRowError, normalise
from schemas.products.normalise import BRAND, STYLE
from sinks.postgres.products import UNIQUE_SQL, has_unique_key
from sources.staging import BEGIN, Batch, Fed, StagingFeeder, StagingReader, check_staging
from streams.cli.private import Private, private
from streams.cli.worker import WorkerProcess

IDLE_SECONDS = 180.0
"""Nothing arrived for so long: the run gives up. Above the sinks' retry timeout of a private worker."""
FOLLOW_SECONDS = 5.0
_OPTIONS = {"STREAMS": "streams.products"}
_SQL = load("sinks.postgres", "products.sql")


class RunFailedError(MillstreamError):
    """What was fed did not arrive. Nothing is lost: the next run begins at the watermark."""


@dataclass(frozen=True)
class ProductsRun:
    """What is asked for."""

    settings: Settings
    table: str
    limit: int
    max_rows: int | None
    resume: bool
    stop_on_error: bool
    detect_deletes: bool

    @property
    def url(self) -> str:
        """Of Postgres. Raises ConfigError."""
        return postgres_url(self.settings)

    @property
    def prefix(self) -> str:
        """Of the namespaces of this database's private runs; one of them at most is under way."""
        parts = urlsplit(self.url)
        return f"etl-{hashlib.sha256(f'{parts.hostname}:{parts.port}{parts.path}'.encode()).hexdigest()[:12]}-"

    async def dry(self) -> list[str]:
        """What a run would change. Reads from Postgres only, and starts nothing (T71)."""
        fed, found = Fed(), Counter[str]()
        with naming("compare products", self.url):
            async with connect(self.url) as connection:
                await connection.execute("SET default_transaction_read_only = on")
                reader = await self._reader(connection)
                async with aclosing(self._batches(reader, self.resume)) as batches:
                    async for batch in batches:
                        fed.look(batch, stop=False)
                        found.update(await _compared(connection, batch))
        names = ("created", "updated", "described", "deleted", "unchanged")
        lines = [f"would be {name}: {found[name]}" for name in names]
        return [f"rows read: {fed.rows}", *lines, *_remarks(fed), f"would be refused: {fed.bad}", *fed.rejected]

    async def run(self, feed_only: bool, follow: bool) -> list[str]:
        """Raises ConfigError, BadRowError, BrokerError, PostgresError, RunFailedError, WorkerFailedError."""
        with naming("etl products", self.url):
            async with AsyncExitStack() as stack:
                reading = await stack.enter_async_context(connect(self.url))
                holding = await stack.enter_async_context(connect(self.url))
                reader = await self._reader(reading)
                feeder = StagingFeeder(self.settings)
                await feeder.claim(holding)
                before = await holding.fetchval("SELECT coalesce(max(id), 0) FROM shop.product_change_log")
                if feed_only:
                    fed = await self._feed(feeder, reader, holding, None, follow)
                    return await self._told(fed, feeder, reader, holding, before)
                one = await stack.enter_async_context(private(f"{self.prefix}{secrets.token_hex(4)}.", _OPTIONS))
                await self._clean_up(one, holding, keep_letters=True)  # what runs left that were killed
                worker = await stack.enter_async_context(one.worker())
                feeder = StagingFeeder(one.settings, feeder.run)
                try:
                    fed = await self._feed(feeder, reader, holding, worker, follow)
                except BadRowError:
                    await worker.stop()
                    await self._clean_up(one, holding, keep_letters=False)  # what came before the row has landed
                    raise
                except RunFailedError as exc:
                    raise RunFailedError(f"{exc}\nThe log of the worker: {one.log_path}") from exc
                await worker.stop()
                lines = await self._told(fed, feeder, reader, holding, before)
                await self._clean_up(one, holding, keep_letters=fed.bad > 0)
                one.log_path.unlink(missing_ok=True)
                return lines

    async def _reader(self, connection: Connection) -> StagingReader:
        await require_migrated(connection)
        reader = StagingReader(connection, self.table)
        await check_staging(reader, unique=await has_unique_key(connection), unique_sql=UNIQUE_SQL)
        return reader

    async def _clean_up(self, one: Private, connection: Connection, *, keep_letters: bool) -> None:
        """Dead letters of earlier runs stay: somebody has to look at them."""
        prefix = self.prefix if keep_letters else one.settings.namespace
        await asyncio.to_thread(one.clean_up, prefix, (dlq_topic(""),) if keep_letters else ())
        await connection.execute("DELETE FROM millstream.positions WHERE starts_with(sink, $1)", self.prefix)

    async def _batches(self, reader: StagingReader, resume: bool) -> AsyncGenerator[Batch, None]:
        overlap = self.settings.etl_overlap
        async with aclosing(reader.batches(self.limit, self.max_rows, overlap, resume)) as batches:
            async for batch in batches:
                yield batch
        if self.detect_deletes:
            async with aclosing(reader.vanished(self.limit)) as batches:
                async for batch in batches:
                    yield batch

    async def _feed(
        self,
        feeder: StagingFeeder,
        reader: StagingReader,
        holding: Connection,
        worker: WorkerProcess | None,
        follow: bool,
    ) -> Fed:
        await feeder.begin()
        fed, resume = Fed(), self.resume
        with Console(stderr=True).status("reading") as status:
            while True:
                refused = await self._pass(feeder, reader, worker, fed, resume, status)
                await self._landed(feeder, holding, worker, fed, status)
                if refused is not None:
                    raise refused
                if not follow:
                    break
                resume = True
                await asyncio.sleep(FOLLOW_SECONDS)
        return fed

    async def _told(
        self, fed: Fed, feeder: StagingFeeder, reader: StagingReader, connection: Connection, before: int
    ) -> list[str]:
        sql = "SELECT change_type, count(*) FROM shop.product_change_log WHERE id > $1 GROUP BY 1"
        counts: dict[str, int] = {row[0]: row[1] for row in await connection.fetch(sql, before)}
        lines = [f"{name}: {counts.get(kind, 0)}" for name, kind in
                 (("created", "CREATE"), ("updated", "UPDATE"), ("deleted", "DELETE"))]  # fmt: skip
        mark = await reader.watermark()
        where = "none yet" if mark == BEGIN else f"{mark.at.isoformat()} {list(mark[1:])}"
        lines = [f"rows fed: {fed.rows}", *lines, *_remarks(fed), f"watermark: {where}"]
        if fed.bad:
            lines += [f"put aside: {fed.bad}, in topic {dlq_topic(feeder.topic)}", *fed.rejected]
        return lines

    async def _pass(
        self, feeder: StagingFeeder, reader: StagingReader, worker: WorkerProcess | None, fed: Fed, resume: bool,
        status: Status,
    ) -> BadRowError | None:  # fmt: skip
        """Once through the table; the error that stopped it."""
        async with aclosing(self._batches(reader, resume)) as batches:
            async for batch in batches:
                try:
                    await asyncio.to_thread(fed.look, batch, self.stop_on_error)
                    await feeder.send(batch)
                except BadRowError as exc:
                    return exc
                if worker is not None:
                    worker.check()
                status.update(f"rows fed: {fed.rows:,}")
        return None

    async def _landed(
        self, feeder: StagingFeeder, connection: Connection, worker: WorkerProcess | None, fed: Fed, status: Status
    ) -> None:
        """Wait until the sink has all rows that were sent."""
        last, changed = -1, time.monotonic()
        while (arrived := await feeder.arrived(connection)) < feeder.sent:
            status.update(f"rows fed: {fed.rows:,}, in the sink: {arrived:,}")
            if worker is not None:
                worker.check()
            if arrived != last:
                last, changed = arrived, time.monotonic()
            elif time.monotonic() - changed > IDLE_SECONDS:
                what = (
                    "is a worker running with MILLSTREAM_STREAMS=streams.products?" if worker is None else worker.tail()
                )
                raise RunFailedError(
                    f"{arrived} of {feeder.sent} rows are in the sink, and nothing arrived for {IDLE_SECONDS:.0f} s; "
                    f"{what}\nNothing is lost: the next run begins at the watermark"
                )
            await asyncio.sleep(0.1)


async def _compared(connection: Connection, batch: Batch) -> list[str]:
    """What each row of a batch would do."""
    if batch.deletes:
        return ["deleted"] * len(batch.rows)
    found = {}
    for row in batch.rows:
        try:
            found[row[BRAND], row[STYLE]] = normalise(row)[0]
        except BadRowError:
            continue  # counted by Fed.look
    columns = [[getattr(p, n) for p in found.values()] for n in ("brand_code", "sku", "data_version", "description")]
    return [row["change"] for row in await connection.fetch(_SQL["compare"], *columns)]


def _remarks(fed: Fed) -> list[str]:
    lines = [f"mended values of {name}: {number}" for name, number in sorted(fed.warnings.items())]
    if fed.outside:
        lines.append(
            f"outside of the order: {fed.outside} rows have no src_updated_at, one in the future, or no key; they are "
            "read in every run and do not move the watermark"
        )
    return lines
