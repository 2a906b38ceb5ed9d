"""What must be there, and what is said where it is not. Both backends."""

from __future__ import annotations

import pytest

from millstream.errors import SinkError
from sinks.clickhouse import ClickHouseBatches, ClickHouseConfig, schema_ddl
from sinks.clickhouse.schema import COMPLETED, COMPLETED_COLUMNS, OBJECTS, RAW, RAW_COLUMNS, ddl
from tests.integration.clickhouse.conftest import Batches, Place


async def _refusal(place: Place, *, create: bool = True) -> str:
    sink = ClickHouseBatches(place.config(create=create))
    with pytest.raises(SinkError) as refused:
        await sink.open()
    await sink.close()
    return str(refused.value)


async def test_missing_tables_are_made_only_when_asked(place: Place, batches: Batches) -> None:
    # facts 2.1: --auto-create-tables
    text = await _refusal(place, create=False)
    assert "millstream misc clickhouse-schema" in text
    assert all(name in text for name in OBJECTS)
    await batches(place)
    sink = ClickHouseBatches(place.config(create=False))
    await sink.open()
    await sink.close()


@pytest.mark.parametrize("present", [(RAW,), (RAW, COMPLETED)])
async def test_a_partial_schema_is_refused_with_names(place: Place, present: tuple[str, ...]) -> None:
    # T39
    for name in present:
        await place.run(ddl(name, place.database))
    text = await _refusal(place)
    missing = [name for name in OBJECTS if name not in present]
    assert (
        f"Inconsistent ClickHouse schema state: {', '.join(sorted(present))} exist, {', '.join(missing)} do not" in text
    )
    assert await place.rows(f"SELECT count() FROM system.tables WHERE database = '{place.database}'") in (
        [[len(present)]],
        [[str(len(present))]],
    )


async def test_tables_of_the_same_name_in_another_database_do_not_count(place: Place, batches: Batches) -> None:
    # T39
    other = place.database + "-other"
    await place.run(f"CREATE DATABASE `{other}`")
    try:
        for name in OBJECTS:
            await place.run(ddl(name, other))
        assert "do not exist" in await _refusal(place, create=False)
        await batches(place)
    finally:
        await place.run(f"DROP DATABASE `{other}`")


async def test_the_printed_ddl_makes_exactly_what_the_sink_accepts(place: Place) -> None:
    for statement in filter(str.strip, schema_ddl(place.database).split(";\n")):
        await place.run(statement)
    sink = ClickHouseBatches(place.config(create=False))
    await sink.open()
    await sink.close()
    for table, expected in ((RAW, RAW_COLUMNS), (COMPLETED, COMPLETED_COLUMNS)):
        found = await place.rows(
            "SELECT name, type FROM system.columns"
            f" WHERE database = '{place.database}' AND table = '{table}' ORDER BY position"
        )
        assert [tuple(row) for row in found] == list(expected.items())
    engine = await place.rows(
        f"SELECT engine_full, sorting_key FROM system.tables WHERE database = '{place.database}' AND name = '{RAW}'"
    )
    assert "non_replicated_deduplication_window = 1000" in engine[0][0]
    assert engine[0][1] == "(cluster, batch, instance, db, key)" or engine[0][1] == "cluster, batch, instance, db, key"


async def test_a_table_that_does_not_fit_is_refused_with_the_alter_to_run(place: Place, batches: Batches) -> None:
    await batches(place)
    await place.run("ALTER TABLE {db}.redis_records_raw DROP COLUMN _offset")
    await place.run("ALTER TABLE {db}.redis_records_raw MODIFY COLUMN freq Nullable(UInt16)")
    text = await _refusal(place)
    alter = text.split("Run: ")[1]
    assert alter == (
        f"ALTER TABLE `{place.database}`.redis_records_raw ADD COLUMN _offset Int64, MODIFY COLUMN freq Nullable(UInt8)"
    )
    await place.run(alter)
    await batches(place)


async def test_a_table_without_insert_deduplication_is_refused(place: Place, batches: Batches) -> None:
    # T5
    await batches(place)
    await place.run("ALTER TABLE {db}.redis_records_raw MODIFY SETTING non_replicated_deduplication_window = 0")
    text = await _refusal(place)
    await place.run(text.split("Run: ")[1])
    await batches(place)


async def test_a_missing_database_is_named_or_made(place: Place) -> None:
    url = place.url.replace(f"database={place.database}", f"database={place.database}-new")
    sink = ClickHouseBatches(ClickHouseConfig.parse(url))
    with pytest.raises(SinkError, match=f"database '{place.database}-new' does not exist.*--auto-create-tables"):
        await sink.open()
    made = ClickHouseBatches(ClickHouseConfig.parse(url, auto_create_tables=True))
    await made.open()
    await made.close()
    await place.run(f"DROP DATABASE `{place.database}-new`")
