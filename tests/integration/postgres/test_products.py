"""Products in a real Postgres: only what changed is written, with its change log and the watermark, all or nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from millstream import failpoints
from millstream.errors import ConfigError
from millstream.postgres import Connection
from schemas.chunk import Chunk, ChunkId
from schemas.log_records import LogRecord
from schemas.products.codec import KIND, MARK, ROW, Mark, StagingCodec, headers_of, key_of, mark_value, row_value
from sinks.postgres import PostgresConfig, PostgresStream, Products

NOW = datetime(2026, 11, 23, 8, 30, tzinfo=UTC)
Value = dict[str, Any] | Mark | tuple[str, str]


def row(sku: str = "S1", brand: str = "B1", **fields: Any) -> dict[str, Any]:
    return {
        "style_brand_no": brand,
        "style_no": sku,
        "price": "398.00",
        "tags_json": '["b","a"]',
        "on_sale": True,
    } | fields


def chunk_of(*values: Value, first: int = 0) -> Chunk:
    records = []
    for offset, value in enumerate(values, first):
        if isinstance(value, Mark):
            records.append(LogRecord(offset, 0, 0, b"", mark_value(value), [(KIND, MARK)]))
        elif isinstance(value, tuple):
            records.append(LogRecord(offset, 0, 0, key_of(*value), None, []))
        else:
            key = key_of(str(value["style_brand_no"]), str(value["style_no"]))
            records.append(LogRecord(offset, 0, 0, key, row_value(value), []))
    at = ChunkId("products.staging.rows", "tid", 0, 0, first, first + len(values) - 1, 1)
    return Chunk(at, StagingCodec().decode(records).table)


async def apply(connection: Connection, *values: Value) -> dict[str, int]:
    async with connection.transaction():
        counts = await Products()(connection, chunk_of(*values))
    return {name: int(n) for name, n in counts.items() if n != "0"}


async def changes(connection: Connection) -> list[tuple[str, str, int, str]]:
    rows = await connection.fetch("SELECT * FROM shop.product_change_log ORDER BY id")
    return [(r["brand_code"], r["sku"], r["seq"], r["change_type"]) for r in rows]


async def test_the_same_batch_three_times_changes_nothing_in_runs_two_and_three(database: Connection) -> None:  # T67
    batch = [row(f"S{i}", price=f"{i}", attrs_json=f'{{"size":"{i}||38"}}') for i in range(50)]
    assert await apply(database, *batch) == {"created": 50}
    before = await database.fetch("SELECT * FROM shop.products ORDER BY id")
    for spelling in (lambda i: f"{i}.0", lambda i: i):
        again = [r | {"price": spelling(i), "tags_json": '["a", "b", "a"]'} for i, r in enumerate(batch)]
        assert await apply(database, *again) == {"unchanged": 50}
    assert await database.fetch("SELECT * FROM shop.products ORDER BY id") == before  # PE-66
    assert len(await changes(database)) == 50


async def test_what_is_stored_is_what_was_hashed(database: Connection) -> None:  # T67
    values = row(
        price="1.005", name="名" * 300, attrs_json='{"b": 1.50, "a": "y||x"}', colors_concat="red", image_url="u"
    )
    await apply(database, values)
    held = dict((await database.fetch("SELECT * FROM shop.products"))[0])
    assert (str(held["price"]), held["name"], held["on_sale"], held["image_url"]) == ("1.01", "名" * 255, True, "u")
    assert json.loads(held["attributes"]) == {"a": ["x", "y"], "b": "1.5", "colors": ["red"]}
    back = {"style_brand_no": "B1", "style_no": "S1"} | {n: held[n] for n in ("name", "price", "on_sale", "image_url")}
    back |= {"tags_json": held["tags"], "attrs_json": held["attributes"]}
    assert await apply(database, back) == {"unchanged": 1}


async def test_an_update_keeps_id_and_created_at_and_is_one_change(database: Connection) -> None:  # PE-64, T65
    await apply(database, row())
    before = await database.fetchrow("SELECT id, created_at FROM shop.products")
    assert await apply(database, row(price="1")) == {"updated": 1}
    assert await database.fetchrow("SELECT id, created_at FROM shop.products") == before
    assert await changes(database) == [("B1", "S1", 1, "CREATE"), ("B1", "S1", 2, "UPDATE")]


async def test_a_return_to_earlier_content_is_a_new_change(database: Connection) -> None:
    for price in ("1", "2", "1"):
        await apply(database, row(price=price))
    versions = [r[0] for r in await database.fetch("SELECT data_version FROM shop.product_change_log ORDER BY seq")]
    assert len(versions) == 3
    assert versions[0] == versions[2] != versions[1]


async def test_a_description_alone_is_written_and_is_no_new_version(database: Connection) -> None:  # T68
    await apply(database, row(description="old"))
    assert await apply(database, row(description="new")) == {"described": 1}
    assert await database.fetchval("SELECT description FROM shop.products") == "new"
    assert len(await changes(database)) == 1


async def test_the_same_sku_of_two_brands_is_two_products(database: Connection) -> None:  # T75, PE-58
    pairs = [("B", "1"), ("B#", "1"), ("B", "#1"), ('B","x', "1"), ("b", "1"), ("B ", "1")]
    assert len({key_of(*p) for p in pairs}) == len(pairs)
    assert await apply(database, *(row(sku, brand, name=f"{brand}/{sku}") for brand, sku in pairs)) == {"created": 6}
    names = await database.fetch("SELECT brand_code, sku, name FROM shop.products")
    assert {(r[0], r[1]): r[2] for r in names} == {p: f"{p[0]}/{p[1]}" for p in pairs}


async def test_a_delete_is_a_change_and_a_product_may_come_back(database: Connection) -> None:  # T74
    await apply(database, row(), row("S2"))
    assert await apply(database, ("B1", "S1"), ("B1", "unknown")) == {"deleted": 1}
    assert await apply(database, ("B1", "S1")) == {}
    assert await apply(database, row()) == {"created": 1}
    assert (await changes(database))[2:] == [("B1", "S1", 2, "DELETE"), ("B1", "S1", 3, "CREATE")]


async def test_of_several_states_in_one_chunk_the_last_one_counts(database: Connection) -> None:
    assert await apply(database, row(price="1"), ("B1", "S1"), row("S2"), row(price="2"), ("B1", "S2")) == {
        "created": 1
    }
    assert str(await database.fetchval("SELECT price FROM shop.products")) == "2.00"


async def test_the_watermark_only_moves_forward(database: Connection) -> None:  # T72
    async def mark(at: datetime | None, brand: str, style: str, number: int) -> tuple[Any, ...]:
        await apply(database, Mark(number, at, brand, style))
        held = await database.fetchrow("SELECT last_processed_at, brand, style, last_row FROM shop.etl_watermark")
        assert held is not None
        return tuple(held)

    assert await mark(NOW, "B", "S", 1) == (NOW, "B", "S", 1)
    assert await mark(NOW, "A", "Z", 2) == (NOW, "B", "S", 2)
    assert await mark(NOW - timedelta(microseconds=1), "Z", "Z", 3) == (NOW, "B", "S", 3)
    assert await mark(None, "", "", 4) == (NOW, "B", "S", 4)
    assert await mark(NOW, "B", "a", 5) == (NOW, "B", "a", 5)


async def test_products_change_log_and_watermark_are_all_there_or_none(database: Connection, postgres: str) -> None:
    sink, chunk = PostgresStream(PostgresConfig(postgres), Products()), chunk_of(row(), Mark(1, NOW, "B1", "S1"))
    await sink.open()

    tables = ("products", "product_change_log", "etl_watermark")

    async def counts() -> list[int]:
        return [await database.fetchval(f"SELECT count(*) FROM shop.{t}") for t in tables]

    for point in ("etl.written", "postgres.applied", "postgres.recorded"):  # T65
        failpoints.arm(f"{point}=error")
        try:
            with pytest.raises(failpoints.FailpointError):
                await sink.write_chunk(chunk)
        finally:
            failpoints.arm("")
        assert await counts() == [0, 0, 0], point
    receipt = await sink.write_chunk(chunk)
    assert (receipt.details["created"], int(receipt.details["watermark"])) == ("1", NOW.timestamp() * 1_000_000)
    assert await sink.write_chunk(chunk) == receipt == await sink.have(chunk)
    assert await counts() == [1, 1, 1]
    await sink.close()


async def test_without_its_unique_key_the_sink_says_the_sql(database: Connection) -> None:  # PE-65
    await database.execute("DROP INDEX shop.idx_products_brand_sku; CREATE UNIQUE INDEX x ON shop.products (sku)")
    with pytest.raises(ConfigError, match="CREATE UNIQUE INDEX CONCURRENTLY idx_products_brand_sku"):
        await Products().check(database)


async def test_rows_of_a_run_that_was_replaced_are_left_out(database: Connection) -> None:  # T72
    def of_run(run: str, price: str) -> Chunk:
        records = [
            LogRecord(0, 0, 0, b"", row_value(row(price=price)), headers_of(ROW, run)),
            LogRecord(1, 0, 0, b"", mark_value(Mark(1, NOW, "B1", "S1")), headers_of(MARK, run)),
        ]
        return Chunk(ChunkId("t", "tid", 0, 0, 0, 1, 1), StagingCodec().decode(records).table)

    await database.execute("INSERT INTO shop.etl_watermark (table_name, run) VALUES ('products_staging', 'new')")
    for run, price, counted in (("old", "1", "superseded"), ("new", "2", "created"), ("old", "3", "superseded")):
        async with database.transaction():
            counts = await Products()(database, of_run(run, price))
        assert counts[counted] == ("1" if run == "new" else "2")
    assert str(await database.fetchval("SELECT price FROM shop.products")) == "2.00"
