"""Rows of the staging table into `shop.products`: what changed, its change log and the watermark, in one transaction.

What counts is the version of the content, not the time of the row: rows that are read again change nothing (T63, T67).
"""

from __future__ import annotations

from typing import Any

from millstream.errors import ConfigError
from millstream.failpoints import declare, failpoint
from millstream.postgres import Connection, load
from schemas.chunk import Chunk
from schemas.products.codec import DELETE, MARKED

SOURCE = "products_staging"
"""`table_name` of our row in etl_watermark."""
WRITTEN = declare("etl.written", "products and change log are written, the watermark is not")

_TABLES = ("products", "product_change_log", "etl_watermark")
_UNIQUE = """
SELECT EXISTS (SELECT FROM pg_index i
                WHERE i.indrelid = 'shop.products'::regclass AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
                  AND i.indnkeyatts = 2
                  AND ARRAY(SELECT a.attname::text FROM pg_attribute a
                             WHERE a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey) ORDER BY 1)
                      = ARRAY['brand_code', 'sku'])
"""
UNIQUE_SQL = "CREATE UNIQUE INDEX CONCURRENTLY idx_products_brand_sku ON shop.products (brand_code, sku);"


async def has_unique_key(connection: Connection) -> bool:
    """Whether (brand_code, sku) is unique in shop.products (T75, PE-65)."""
    return bool(await connection.fetchval(_UNIQUE))


class Products:
    """`Apply` of a PostgresStream whose chunks are tables of `schemas.products.codec`.

    Details of the receipt are numbers: products `created`, `updated`, `described` (only the description changed, which
    is no new version), `deleted`, `unchanged`, `warnings` of the normaliser, and `superseded`: rows of a feeder's run
    that another one has replaced. That one reads them again, perhaps in a newer state. With a mark in the chunk also
    `watermark`: its timestamp after the chunk, in microseconds since 1970.
    """

    def __init__(self) -> None:
        self._sql = load("sinks.postgres", "products.sql")

    async def check(self, connection: Connection) -> None:
        """Raises ConfigError for a table or the unique key that is missing."""
        for table in _TABLES:
            if await connection.fetchval("SELECT to_regclass($1) IS NULL", f"shop.{table}"):
                raise ConfigError(f"Postgres has no table shop.{table}: run `millstream migrate`")
        if not await has_unique_key(connection):
            raise ConfigError(f"(brand_code, sku) is not unique in shop.products: {UNIQUE_SQL}")

    async def __call__(self, connection: Connection, chunk: Chunk) -> dict[str, str]:
        """A handful of statements, whatever the number of rows."""
        # Locked until the end: one transaction of this kind at a time, and none beside a new run's claim (T72).
        run = await connection.fetchval(self._sql["own"], SOURCE)
        found = chunk.records.to_pylist()
        rows = [r for r in found if r["run"] in (None, run)]
        last: dict[tuple[str, str], dict[str, Any]] = {}
        for row in rows:
            if row["op"] != MARKED:  # of several states of one product, the one that was read last
                key = row["brand_code"], row["sku"]
                last.pop(key, None)
                last[key] = row
        if last:
            await connection.execute(self._sql["lock"], *zip(*last, strict=True))
        upserts = [r for r in last.values() if r["op"] != DELETE]
        deletes = [k for k, r in last.items() if r["op"] == DELETE]
        counts = dict.fromkeys(("created", "updated", "described", "deleted"), 0)
        if deletes:
            counts["deleted"] = await connection.fetchval(self._sql["delete"], *zip(*deletes, strict=True))
        if upserts:
            counts |= dict(await connection.fetchrow(self._sql["upsert"], *_columns(upserts)) or {})
        failpoint(WRITTEN)
        marks = [r for r in rows if r["op"] == MARKED]
        for row in marks:
            await self._mark(connection, row)
        changed = counts["created"] + counts["updated"] + counts["described"]
        counts |= {"unchanged": len(upserts) - changed, "warnings": sum(r["warnings"] for r in rows)}
        counts["superseded"] = len(found) - len(rows)
        if marks:
            counts["watermark"] = await connection.fetchval(self._sql["held"], SOURCE)
        return {name: str(n) for name, n in counts.items()}

    async def _mark(self, connection: Connection, row: dict[str, Any]) -> None:
        if row["at"] is not None:
            await connection.execute(self._sql["advance"], SOURCE, row["at"], row["brand_code"], row["sku"])
        await connection.execute(self._sql["arrived"], SOURCE, row["row"])


_COLUMNS = ("brand_code", "sku", "name", "price", "tags", "attributes", "description", "image_url", "on_sale",
            "data_version")  # fmt: skip


def _columns(rows: list[dict[str, Any]]) -> list[list[Any]]:
    return [[row[name] for row in rows] for name in _COLUMNS]
