"""The tables: what must be there, how it is made, and what to run where it is not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources import files

from millstream.errors import ConfigError, SinkError
from millstream.failpoints import declare, failpoint
from millstream.logs import get_logger
from sinks.clickhouse.client import Client
from sinks.clickhouse.config import BATCH_TTL_DAYS, DATABASE

log = get_logger(__name__)

RAW, COMPLETED, VIEW = "redis_records_raw", "import_batches_completed", "redis_records_view"
FENCE, CLOSED = "millstream_fence", "millstream_closed_batches"
OBJECTS = (RAW, COMPLETED, VIEW)
"""The three objects of a dump database (facts 2.1). What is ours, FENCE and CLOSED, is made when missing."""
CREATING = "millstream_creating"
"""Stands while we make the tables: a start that was killed in the middle is finished by the next, not refused."""

RAW_COLUMNS = {
    "cluster": "String",
    "batch": "DateTime64(9, 'UTC')",
    "instance": "String",
    "db": "UInt64",
    "key": "String",
    "type": "LowCardinality(String)",
    "member_count": "UInt64",
    "rdb_size": "UInt64",
    "encoding": "LowCardinality(String)",
    "expire_at": "Nullable(DateTime64(3, 'UTC'))",
    "idle_seconds": "Nullable(UInt64)",
    "freq": "Nullable(UInt8)",
    "codis_slot": "Nullable(UInt16)",
    "redis_slot": "Nullable(UInt16)",
    "_topic": "LowCardinality(String)",
    "_partition": "Int32",
    "_offset": "Int64",
}
"""Columns of `redis_records_raw` in order; a test compares them with the DDL."""
COMPLETED_COLUMNS = {"cluster": "String", "batch": "DateTime64(9, 'UTC')"}
POSITION_COLUMNS = {"_topic": "LowCardinality(String)", "_partition": "Int32", "_offset": "Int64"}
"""What an ordinary stream's table must have, so that the sink can tell which chunks it holds."""
_POSITION_TYPES = {
    "_topic": {"String", "LowCardinality(String)"},
    "_partition": {"Int32", "Int64"},
    "_offset": {"Int64"},
}
CREATED = declare("clickhouse.schema.created", "one of the three objects was made, the others may be missing")
_DDL_COMMAND = "millstream misc clickhouse-schema"
_SECONDS = {"Second": 1, "Minute": 60, "Hour": 3600, "Day": 86_400, "Week": 604_800}
_TTL = re.compile(r"\bTTL toDateTime\(batch\) \+ toInterval(\w+)\((\d+)\)")
_DEDUPLICATION = re.compile(r"\bnon_replicated_deduplication_window\s*=\s*([1-9]\d*)")


def _read(name: str) -> str:
    return files("sinks.clickhouse").joinpath("sql", name).read_text(encoding="utf-8").strip()


def _named_statements(text: str) -> dict[str, str]:
    _, *parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return {
        name: re.sub(r"^--.*\n", "", body, flags=re.MULTILINE).strip()
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


# Read at import: later on it would block the event loop.
_STATEMENTS = _named_statements(_read("statements.sql") + "\n" + _read("report.sql"))
_DDL = {
    RAW: _read("01_redis_records_raw.sql"),
    COMPLETED: _read("02_import_batches_completed.sql"),
    VIEW: _read("03_redis_records_view.sql"),
    FENCE: _read("04_millstream_fence.sql"),
    CLOSED: _read("05_millstream_closed_batches.sql"),
}


def statement(statement_name: str, **names: str) -> str:
    """A statement with its `{{…}}` names put in; `{name:Type}` stays for the server to bind."""
    sql = _STATEMENTS[statement_name]
    for name, text in names.items():
        sql = sql.replace("{{" + name + "}}", text)
    if "{{" in sql:
        raise ValueError(f"statement {statement_name} lacks a name: {sql}")
    return sql


def quoted(name: str) -> str:
    """An identifier in backquotes."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def literal(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def ddl(name: str, database: str, ttl_days: int = BATCH_TTL_DAYS) -> str:
    """The CREATE statement of one object."""
    return _DDL[name].replace("{{database}}", quoted(database)).replace("{{ttl_days}}", str(ttl_days))


def schema_ddl(database: str, ttl_days: int = BATCH_TTL_DAYS) -> str:
    """The whole DDL of a database, as `millstream misc clickhouse-schema` prints it: statements ended by `;`."""
    if not DATABASE.fullmatch(database):
        raise ConfigError(f"database {database!r} may hold only the characters A-Z a-z 0-9 _ and -")
    create = [f"CREATE DATABASE IF NOT EXISTS {quoted(database)}", *(ddl(n, database, ttl_days) for n in _DDL)]
    return ";\n\n".join(create) + ";\n"


async def ensure_database(client: Client, database: str, *, create: bool) -> None:
    """The database is there, or is made (`create`). Raises SinkError that names the commands."""
    found = await client.rows(statement("databases"), {"database": database}, purpose="look for the database")
    if found:
        return
    if not create:
        raise SinkError(
            f"ClickHouse {client.url}: database {database!r} does not exist. Create it with"
            f" CREATE DATABASE {quoted(database)}, or pass --auto-create-tables; `{_DDL_COMMAND}` prints the whole DDL"
        )
    await client.run(f"CREATE DATABASE IF NOT EXISTS {quoted(database)}", purpose="create the database")
    log.info("clickhouse_create_database", database=database, url=client.url, description="database created")


async def ensure_own(client: Client, database: str, table: str) -> None:
    """A table of our own (FENCE, CLOSED) is there; it is made if it is missing, whoever made the others."""
    if not await _found(client, database, (table,)):
        await client.run(ddl(table, database), purpose=f"create {table}")


async def ensure_batch_tables(client: Client, database: str, *, create: bool, ttl_days: int) -> int | None:
    """All three objects are there and fit (T39: in this database, not in another one). Returns the TTL in seconds.

    None exist: made with `create`, else refused. Some exist: refused, unless we ourselves are making them right now
    (another worker, or an earlier start that was killed). Raises SinkError.
    """
    found = await _found(client, database, (*OBJECTS, CREATING))
    if 0 < len(found) < len(OBJECTS):
        # Another worker may have finished while that list was read.
        found = await _found(client, database, (*OBJECTS, CREATING))
    ours = CREATING in found
    missing = [name for name in OBJECTS if name not in found]
    present = sorted(set(OBJECTS) - set(missing))
    where = f"ClickHouse {client.url}, database {database!r}"
    if missing and create and (ours or not present):
        await _create(client, database, ttl_days)
        found = await _found(client, database, OBJECTS)
    elif missing and not present:
        raise SinkError(
            f"{where}: the tables {', '.join(OBJECTS)} do not exist. Run what `{_DDL_COMMAND}` prints,"
            " or pass --auto-create-tables"
        )
    elif missing:
        raise SinkError(
            f"{where}: Inconsistent ClickHouse schema state: {', '.join(present)} exist, {', '.join(missing)} do"
            f" not. Nothing was changed. Drop what exists or create what is missing: `{_DDL_COMMAND}` prints the DDL"
        )
    await _check_columns(client, database, RAW, RAW_COLUMNS)
    await _check_columns(client, database, COMPLETED, COMPLETED_COLUMNS)
    _check_deduplication(where, f"{quoted(database)}.{RAW}", *found[RAW])
    return ttl_seconds(found[RAW][1])


async def _create(client: Client, database: str, ttl_days: int) -> None:
    creating = f"{quoted(database)}.{CREATING}"
    await client.run(f"CREATE TABLE IF NOT EXISTS {creating} (x UInt8) ENGINE = Null", purpose=f"create {CREATING}")
    for name in OBJECTS:
        await client.run(ddl(name, database, ttl_days), purpose=f"create {name}")
        failpoint(CREATED)
    await client.run(f"DROP TABLE IF EXISTS {creating} SYNC", purpose=f"drop {CREATING}")
    log.info("clickhouse_create_tables", database=database, url=client.url, description="tables created")


async def stream_columns(client: Client, database: str, table: str) -> dict[str, str]:
    """Column -> type of a user's own table, which must fit the sink. Raises SinkError with the ALTER to run."""
    found = await _found(client, database, (table,))
    name = f"{quoted(database)}.{quoted(table)}"
    where = f"ClickHouse {client.url}"
    if table not in found:
        raise SinkError(f"{where}: table {name} does not exist. Create it with the columns {_listed(POSITION_COLUMNS)}")
    columns = await _columns(client, database, table)
    lacking = {c: t for c, t in POSITION_COLUMNS.items() if c not in columns}
    if lacking:
        raise SinkError(
            f"{where}: table {name} lacks the columns that tell which chunks it holds. Run:"
            f" ALTER TABLE {name} {', '.join(f'ADD COLUMN {c} {t}' for c, t in lacking.items())}"
        )
    for column, types in _POSITION_TYPES.items():
        if columns[column] not in types:
            raise SinkError(
                f"{where}: column {column} of {name} is {columns[column]}. Run: ALTER TABLE {name}"
                f" MODIFY COLUMN {column} {POSITION_COLUMNS[column]}"
            )
    engine, create = found[table]
    if engine not in ("MergeTree", "ReplicatedMergeTree", "SharedMergeTree"):
        # Hole g: the sink counts a range to know whether it holds it; engines that merge rows away make that a lie.
        raise SinkError(
            f"{where}: table {name} has the engine {engine}, which may drop rows, so the sink could not know what it"
            " holds. Use MergeTree, and a materialized view for anything else"
        )
    _check_deduplication(where, name, engine, create)
    return columns


def ttl_seconds(create_table_query: str) -> int | None:
    """TTL of a batch as the server's own CREATE statement says it; None without one. Raises SinkError if unknown."""
    m = _TTL.search(create_table_query)
    if m and m[1] in _SECONDS:
        return int(m[2]) * _SECONDS[m[1]]
    if re.search(r"\bTTL\b", create_table_query):
        raise SinkError(
            f"{RAW} has a TTL that is not understood, so no batch could be told to be too old. Run: ALTER TABLE {RAW}"
            f" MODIFY TTL toDateTime(batch) + INTERVAL {BATCH_TTL_DAYS} DAY (any number of days), or REMOVE TTL"
        )
    return None


async def _found(client: Client, database: str, names: Iterable[str]) -> dict[str, tuple[str, str]]:
    rows = await client.rows(
        statement("tables"), {"database": database, "names": list(names)}, purpose="look for the tables"
    )
    return {name: (engine, create) for name, engine, create in rows}


async def _columns(client: Client, database: str, table: str) -> dict[str, str]:
    rows = await client.rows(
        statement("columns"), {"database": database, "table": table}, purpose=f"read the columns of {table}"
    )
    return {name: kind for name, kind, default in rows if default not in ("MATERIALIZED", "ALIAS", "EPHEMERAL")}


async def _check_columns(client: Client, database: str, table: str, expected: dict[str, str]) -> None:
    found = await _columns(client, database, table)
    changes = [f"ADD COLUMN {name} {kind}" for name, kind in expected.items() if name not in found]
    changes += [f"MODIFY COLUMN {n} {k}" for n, k in expected.items() if n in found and found[n] != k]
    if changes:
        named = [n for n, k in expected.items() if found.get(n) != k]
        raise SinkError(
            f"ClickHouse {client.url}: {quoted(database)}.{table} does not fit in {', '.join(named)}. Run:"
            f" ALTER TABLE {quoted(database)}.{table} {', '.join(changes)}"
        )


def _check_deduplication(where: str, name: str, engine: str, create: str) -> None:
    if not engine.startswith(("Replicated", "Shared")) and not _DEDUPLICATION.search(create):
        raise SinkError(
            f"{where}: {name} does not deduplicate inserts, so two workers could write a chunk twice. Run:"
            f" ALTER TABLE {name} MODIFY SETTING non_replicated_deduplication_window = 1000"
        )


def _listed(columns: dict[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns.items())
