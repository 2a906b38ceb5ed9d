"""Reads the staging table in the order of `(src_updated_at, style_brand_no, style_no)`, a batch at a time.

- A tie of timestamps is no gap: the cursor is all three values, compared as a row (T61, PE-60).
- What was committed late is seen: a run begins `overlap` seconds before the watermark (T63).
- It ends: rows up to the clock of its start are read, whatever is written meanwhile (T70).
- Rows that no cursor reaches (no timestamp, one in the future, a key that is NULL) are read by themselves, after the
  others, in every run; they never move the watermark (T73).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from asyncpg import Record

from millstream.errors import ConfigError
from millstream.postgres import Connection, load
from schemas.products.normalise import BRAND, COLUMNS, STYLE

TABLE = "shop.products_staging"
WATERMARK = "products_staging"
"""Row of etl_watermark; sinks/postgres/products.py moves it."""
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?")
ODD_TOLERANCE = timedelta(minutes=5)
"""A timestamp ahead of Postgres's clock by less than this is a clock that is wrong; the next run reads that row."""


class Cursor(NamedTuple):
    """A position in the table."""

    at: datetime
    brand: str
    style: str


BEGIN = Cursor(datetime.min.replace(tzinfo=UTC), "", "")
"""asyncpg's -infinity."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows."""

    rows: list[Mapping[str, Any]]
    end: Cursor | None
    """Everything up to here is read. None: rows outside of the order, or deletes."""
    deletes: bool = False
    """The rows are those of products that are gone from the table."""


def check_name(table: str) -> None:
    """Raises ConfigError for what cannot stand in a statement."""
    if _TABLE.fullmatch(table) is None:
        raise ConfigError(f"table {table!r}: a plain name, or schema.name, is needed")


class StagingReader:
    """Batches of one run. Reads only."""

    def __init__(self, connection: Connection, table: str = TABLE) -> None:
        check_name(table)
        self._connection, self.table = connection, table
        self._sql = {
            name: text.replace("{table}", table) for name, text in load("sources.staging", "staging.sql").items()
        }

    async def columns(self) -> frozenset[str]:
        """Names of the table's columns; none if there is no table."""
        return frozenset(r["attname"] for r in await self._connection.fetch(self._sql["columns"], self.table))

    async def watermark(self) -> Cursor:
        """How far the sink has come."""
        row = await self._connection.fetchrow(self._sql["watermark"], WATERMARK)
        return Cursor(_aware(row["last_processed_at"]), row["brand"], row["style"]) if row is not None else BEGIN

    async def batches(
        self, limit: int, max_rows: int | None, overlap: float, resume: bool
    ) -> AsyncGenerator[Batch, None]:
        """All that is to be read now, `limit` rows at a time; `max_rows` counts rows beyond the watermark.

        Without `resume` from the beginning, once: the watermark is not looked at.
        """
        now = await self._connection.fetchval(self._sql["now"])
        mark = await self.watermark() if resume else BEGIN
        at = mark
        if mark.at.year > 1:
            at = Cursor(mark.at - timedelta(seconds=overlap), "", "")
        left, query = max_rows, await self._query("ordered")
        while True:
            rows = await self._connection.fetch(query, *at, now, limit)
            if left is not None:
                rows = _cut(rows, mark, left)
                left -= sum(_cursor(r) > mark for r in rows)
            if rows:
                at = _cursor(rows[-1])
                yield Batch([_plain(r) for r in rows], at)
            if left == 0:
                return
            if len(rows) < limit:
                break
        async for batch in self._odd(now, limit, left):
            yield batch

    async def vanished(self, limit: int) -> AsyncGenerator[Batch, None]:
        """Products that the table no longer has (T74). Raises ConfigError if it has no rows at all."""
        if not await self._connection.fetchval(self._sql["rows"]):
            raise ConfigError(
                f"{self.table} has no rows: --detect-deletes would delete every product. Fill the table first"
            )
        at = ("", "")
        while rows := await self._connection.fetch(self._sql["vanished"], *at, limit):
            at = rows[-1]["brand_code"], rows[-1]["sku"]
            yield Batch([{BRAND: r["brand_code"], STYLE: r["sku"]} for r in rows], None, deletes=True)

    async def _odd(self, now: datetime, limit: int, left: int | None) -> AsyncGenerator[Batch, None]:
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            query = await self._query("odd")
            cursor = await self._connection.cursor(query, now + ODD_TOLERANCE)
            while rows := await cursor.fetch(limit if left is None else min(limit, left)):
                yield Batch([_plain(r) for r in rows], None)
                if left is not None and (left := left - len(rows)) == 0:
                    return

    async def _query(self, name: str) -> str:
        known = await self.columns()
        return self._sql[name].replace("{columns}", ", ".join(c for c in COLUMNS if c in known))


def _cut(rows: list[Record], mark: Cursor, left: int) -> list[Record]:
    """Up to `left` rows beyond the watermark; those of the overlap do not count, or no run would get beyond it."""
    new = 0
    for number, row in enumerate(rows):
        new += _cursor(row) > mark
        if new > left:
            return rows[:number]
    return rows


def _cursor(row: Record) -> Cursor:
    # Python orders text by code point, which is the order of "C" in UTF-8.
    return Cursor(_aware(row["_at"]), str(row[BRAND]), str(row[STYLE]))


def _aware(at: datetime) -> datetime:
    """asyncpg gives infinities without a time zone."""
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _plain(row: Record) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "_at"}
