"""Products against the staging table, and against the rows of the last run as they stand in the topic."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from millstream.cluster import Cluster, client_config
from millstream.errors import ConfigError
from millstream.failpoints import failpoint
from millstream.postgres import Connection, load
from millstream.settings import Settings
from schemas.chunk import Chunk, ChunkId
from schemas.log_records import LogRecord
from schemas.products import TOPIC, BadRowError, normalise
from schemas.products.codec import MARKED, UPSERT, StagingCodec, key_of, row_value
from schemas.products.normalise import BRAND, COLUMNS, STYLE, UPDATED
from sinks.postgres import Products
from sinks.postgres.products import SOURCE
from sources.staging import Batch, StagingFeeder, StagingReader
from streams.replay.plan import TopicPlan
from streams.replay.slices import ROWS
from streams.replay.topic import TopicSource
from streams.verify.compare import Verdict, compare
from streams.verify.repair import REPAIRED

_SQL = load("streams.verify", "products.sql")
_AT_ONCE = 1000
_Row = tuple[str, str, str | None, str | None, datetime | None]


@dataclass
class ProductsLook:
    """One look; `connection` keeps what was read in temporary tables."""

    settings: Settings
    connection: Connection
    table: str
    ranges: int
    with_topic: bool
    verdicts: list[Verdict] = field(default_factory=list)

    async def look(self) -> list[Verdict]:
        """Compare; staging table and products are read as they are at one moment."""
        await self.connection.execute("DROP TABLE IF EXISTS pg_temp.source_products, pg_temp.topic_products")
        await self.connection.execute(_SQL["temporary"])
        async with self.connection.transaction(isolation="repeatable_read"):
            nameless = await self._read_source()
            self.verdicts = [await self._by_source(nameless)]
            if self.with_topic:
                self.verdicts.append(await self._by_topic())
        return self.verdicts

    async def repair(self, connection: Connection, keys: Sequence[str]) -> None:
        """Bring the rows of these products in, as a run would; what the table no longer has is deleted.

        Raises ConfigError while a run is under way, or if the table is empty.
        """
        await StagingFeeder(self.settings).claim(connection)  # rows of runs before it are left out from here on (T72)
        if not await connection.fetchval(_SQL["any"].replace("{table}", self.table)):
            raise ConfigError(f"{self.table} has no rows: a repair would delete every product. Fill the table first")
        known = await StagingReader(connection, self.table).columns()
        sql = _SQL["rows_of"].replace("{table}", self.table)
        sql = sql.replace("{columns}", ", ".join(c for c in COLUMNS if c in known))
        for first in range(0, len(keys), _AT_ONCE):
            pairs = [json.loads(key) for key in keys[first : first + _AT_ONCE]]
            async with connection.transaction():
                rows = await connection.fetch(sql, *map(list, zip(*pairs, strict=True)))
                chunk = await asyncio.to_thread(_chunk, pairs, [dict(row) for row in rows])
                await Products()(connection, chunk)
            failpoint(REPAIRED)

    async def _read_source(self) -> int:
        """Into `source_products`; how many rows have no key."""
        nameless, reader = 0, StagingReader(self.connection, self.table)
        async with aclosing(reader.batches(ROWS, None, 0.0, resume=False)) as batches:
            async for batch in batches:
                rows, without = await asyncio.to_thread(_products, batch)
                nameless += without
                await self._put("source_products", rows)
        return nameless

    async def _by_source(self, nameless: int) -> Verdict:
        wanted = _SQL["wanted"].replace("{table}", "source_products")
        verdict = await compare(self.connection, "source", wanted, _SQL["held"], self.ranges)
        if verdict.keys:
            found = await self.connection.fetch(_SQL["to_come"], verdict.keys, SOURCE)
            waiting = {row["key"] for row in found}
            verdict.waiting = len(waiting)
            verdict.leave_out(waiting)
        refused = nameless + await self.connection.fetchval(_SQL["refused"])
        if refused:
            verdict.notes.append(f"not compared, rows that cannot become a product: {refused}")
        return verdict

    async def _by_topic(self) -> Verdict:
        run = await self.connection.fetchrow(_SQL["run"], SOURCE)
        topic, fed = self.settings.namespace + TOPIC, 0
        cluster = Cluster(client_config(self.settings), self.settings.request_timeout)
        if run is not None and topic in await asyncio.to_thread(cluster.topics, [topic]):
            source, codec = TopicSource(self.settings, topic, TopicPlan()), StagingCodec()
            await source.prepare({})
            async with aclosing(source.slices(ROWS)) as slices:
                async for found in slices:
                    table = (await asyncio.to_thread(codec.decode, found.records)).table
                    rows = [row for row in table.to_pylist() if row["run"] == run["run"]]
                    fed = max([fed, *(row["row"] for row in rows if row["op"] == MARKED)])
                    await self._put("topic_products", [_of_topic(row) for row in rows if row["op"] != MARKED])
        if not fed:
            return Verdict("topic", notes=["has no rows of the last run (a private run removes its topic)"])
        wanted = _SQL["wanted"].replace("{table}", "topic_products")
        verdict = await compare(self.connection, "topic", wanted, _SQL["held_of_topic"], self.ranges)
        verdict.notes.append(f"rows of the last run: {fed}, of these in the sink: {run['last_row'] if run else 0}")
        if run is not None and run["last_row"] < fed:
            verdict.waiting = len(verdict.keys)
            verdict.leave_out(set(verdict.keys))
        return verdict

    async def _put(self, table: str, rows: list[_Row]) -> None:
        last = {row[:2]: row for row in rows}
        if last:
            await self.connection.execute(
                _SQL["put"].replace("{table}", table), *map(list, zip(*last.values(), strict=True))
            )


def _products(batch: Batch) -> tuple[list[_Row], int]:
    found: list[_Row] = []
    nameless = 0
    for row in batch.rows:
        brand, style, at = row[BRAND], row[STYLE], row.get(UPDATED)
        try:
            product = normalise(row)[0]
        except BadRowError:
            if isinstance(brand, str) and isinstance(style, str):
                found.append((brand, style, None, None, None))
            else:
                nameless += 1
        else:
            at = _aware(at) if batch.end is not None and isinstance(at, datetime) else None
            found.append((product.brand_code, product.sku, product.data_version, product.description, at))
    return found, nameless


def _aware(at: datetime) -> datetime:
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _of_topic(row: Mapping[str, Any]) -> _Row:
    version = row["data_version"] if row["op"] == UPSERT else None
    return (row["brand_code"], row["sku"], version, row["description"], None)


def _chunk(pairs: list[list[str]], rows: list[dict[str, Any]]) -> Chunk:
    """Rows as the feeder would send them; a product without one is a delete."""
    last = {(str(row[BRAND]), str(row[STYLE])): row for row in rows}
    records = [
        LogRecord(n, 0, 0, key_of(*pair), row_value(row) if (row := last.get((pair[0], pair[1]))) else None, [])
        for n, pair in enumerate(pairs)
    ]
    return Chunk(ChunkId("verify", "", 0, 0, 0, len(records) - 1), StagingCodec().decode(records).table)
