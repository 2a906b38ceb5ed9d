"""Reading the staging table: nothing missed, nothing read for ever, and what no cursor reaches is reported."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from millstream.errors import ConfigError
from millstream.postgres import Connection
from schemas.products import BadRowError
from sources.staging import Batch, StagingReader, check_staging
from sources.staging.feed import Fed
from sources.staging.reader import WATERMARK

T0 = datetime(2026, 1, 1, tzinfo=UTC)
Row = tuple[str | None, str | None, datetime | None]


async def stage(connection: Connection, *rows: Row) -> None:
    columns = ["style_brand_no", "style_no", "src_updated_at"]
    await connection.copy_records_to_table("products_staging", schema_name="shop", records=rows, columns=columns)


async def land(connection: Connection, batch: Batch) -> None:
    """As if the sink had it."""
    if batch.end is not None:
        await connection.execute("DELETE FROM shop.etl_watermark")
        sql = "INSERT INTO shop.etl_watermark (table_name, last_processed_at, brand, style) VALUES ($4, $1, $2, $3)"
        await connection.execute(sql, *batch.end, WATERMARK)


async def read(connection: Connection, limit: int = 1000, max_rows: int | None = None, **more: Any) -> list[Batch]:
    options = {"overlap": 60.0, "resume": True} | more
    found = [b async for b in StagingReader(connection).batches(limit, max_rows, **options)]
    for batch in found:
        await land(connection, batch)
    return found


def keys(batches: list[Batch]) -> list[str]:
    return [row["style_no"] for batch in batches for row in batch.rows]


async def test_1500_rows_of_one_second_are_all_read_with_a_limit_of_1000(database: Connection) -> None:  # T61, PE-60
    wanted = [f"{i:04}" for i in range(1500)]
    await stage(database, *(("B", k, T0) for k in reversed(wanted)))
    batches = await read(database)
    assert [len(b.rows) for b in batches] == [1000, 500]
    assert keys(batches) == wanted


async def test_runs_of_few_rows_get_through_a_tie_that_is_longer(database: Connection) -> None:  # T61, T63, PE-68
    await database.execute("INSERT INTO shop.etl_watermark (table_name) VALUES ('products_staging')")  # a run has begun
    await stage(database, *(("B", f"{i:02}", T0) for i in range(25)))
    runs = [keys(await read(database, 4, max_rows=10)) for _ in range(4)]
    assert [run[-1] for run in runs] == ["09", "19", "24", "24"]
    assert all(len(run) == len(set(run)) for run in runs)


async def test_brand_and_style_are_compared_as_a_pair(database: Connection) -> None:  # PE-60
    pairs = [("B", "#1"), ("B#", "1"), ("a", "é"), ("a", "z"), ("É", "x"), ("B", "Z"), ("B", "a")]
    await stage(database, *((b, s, T0) for b, s in pairs))
    found = [(r["style_brand_no"], r["style_no"]) for b in await read(database, 1) for r in b.rows]
    assert found == sorted(pairs)


async def test_a_row_that_was_committed_late_is_read(database: Connection) -> None:  # T63
    await stage(database, ("B", "1", T0))
    await read(database)
    await stage(database, ("B", "late", T0 - timedelta(seconds=5)), ("B", "too late", T0 - timedelta(seconds=90)))
    assert keys(await read(database)) == ["late", "1"]
    assert "too late" in keys(await read(database, overlap=120.0))


async def test_without_resume_all_is_read_once_whatever_is_written_meanwhile(database: Connection) -> None:  # T70
    await stage(database, *(("B", f"{i}", T0 + timedelta(seconds=i)) for i in range(5)))
    await read(database)
    found = []
    async for batch in StagingReader(database).batches(2, None, 60.0, resume=False):
        found += [row["style_no"] for row in batch.rows]
        await database.execute("UPDATE shop.products_staging SET src_updated_at = clock_timestamp() + interval '1 s'")
    assert len(found) <= 5
    assert keys(await read(database, 2, resume=False, max_rows=3)) == keys(await read(database, resume=False))[:3]


async def test_rows_without_a_usable_time_are_read_outside_of_the_order(database: Connection) -> None:  # T73
    await stage(database, ("B", "1", T0), ("B", "null", None), ("B", "far", T0.replace(year=2099)), ("B", None, T0))
    await database.execute("INSERT INTO shop.products_staging VALUES ('B', 'inf'), ('B', '-inf')")
    await database.execute("UPDATE shop.products_staging SET src_updated_at = 'infinity' WHERE style_no = 'inf'")
    await database.execute("UPDATE shop.products_staging SET src_updated_at = '-infinity' WHERE style_no = '-inf'")
    for ordered in (["-inf", "1"], ["1"]):
        batches = await read(database, 2, max_rows=100)
        assert keys([b for b in batches if b.end is not None]) == ordered
        assert keys([b for b in batches if b.end is None]) == ["far", "inf", "null", None]
        assert await database.fetchval("SELECT last_processed_at FROM shop.etl_watermark") == T0
        fed = Fed()
        for batch in batches:
            fed.look(batch, stop=False)
        assert (fed.rows, fed.outside, fed.bad) == (4 + len(ordered), 4, 1)


async def test_a_bad_row_stops_before_its_batch_or_is_counted(database: Connection) -> None:  # T64
    fed = Fed()
    batch = Batch(
        [{"style_brand_no": "B", "style_no": "1"}, {"style_brand_no": "B", "style_no": "2", "price": 1.5}], None
    )
    with pytest.raises(BadRowError, match="style_brand_no='B', style_no='2', field price: is the float"):
        fed.look(batch, stop=True)
    assert fed == Fed()
    fed.look(batch, stop=False)
    assert (fed.rows, fed.bad) == (2, 1)


async def test_products_that_left_the_table_are_found(database: Connection) -> None:  # T74
    insert = "INSERT INTO shop.products (brand_code, sku, data_version) SELECT 'B', 's' || i, ''"
    await database.execute(f"{insert} FROM generate_series(1, 7) i")
    reader = StagingReader(database)
    with pytest.raises(ConfigError, match="has no rows"):
        _ = [b async for b in reader.vanished(2)]
    await stage(database, ("B", "s3", None), ("C", "s4", T0))
    found = [b async for b in reader.vanished(2)]
    assert keys(found) == ["s1", "s2", "s4", "s5", "s6", "s7"]
    assert all(b.deletes for b in found)


async def test_what_is_missing_is_told_with_the_sql_that_mends_it(database: Connection) -> None:  # PE-65
    await check_staging(StagingReader(database), unique=True, unique_sql="")
    with pytest.raises(ConfigError, match=r"no table shop\.nothing"):
        await check_staging(StagingReader(database, "shop.nothing"), unique=True, unique_sql="")
    await database.execute("ALTER TABLE shop.products_staging DROP COLUMN src_updated_at")
    with pytest.raises(ConfigError) as error:
        await check_staging(StagingReader(database), unique=False, unique_sql="CREATE UNIQUE INDEX x;")
    for statement in str(error.value).splitlines()[1:-1]:
        await database.execute(statement)
    await check_staging(StagingReader(database), unique=True, unique_sql="")
    with pytest.raises(ConfigError, match="plain name"):
        StagingReader(database, "x; DROP TABLE y")
