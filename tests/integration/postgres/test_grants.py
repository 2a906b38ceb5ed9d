"""docs/security.md: with those grants every program can do its work in Postgres, and each of them is needed."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import pytest

from millstream.postgres import Connection, connect
from millstream.postgres.queries import load
from schemas.postgres import migrate
from tests.support.postgres import new_database
from tests.unit.docs.documents import ROOT, code_blocks

SCHEMA_CHECK = {"migrations": "SELECT version, name, sha256 FROM millstream.migrations"}
_VERIFY, _PRODUCTS = load("streams.verify", "projection.sql"), load("streams.verify", "products.sql")
RESUME = {"forget": "DELETE FROM millstream.positions WHERE starts_with(sink, $1)"}  # streams.cli.products

PROGRAMS = {
    "relay": [
        {name: sql for name, sql in load("sources.outbox", "outbox.sql").items() if name not in ("prune", "insert")},
        load("sources.outbox", "slot.sql"),
    ],
    "projection": [
        load("sinks.postgres", "projection.sql"),
        load("sinks.postgres", "positions.sql"),
        load("streams", "videos.sql"),
    ],
    "products": [
        load("sinks.postgres", "products.sql"),
        load("sinks.postgres", "positions.sql"),
        load("sources.staging", "staging.sql"),
        load("sources.staging", "changes.sql"),
        RESUME,
    ],
    "verify": [
        {name: _VERIFY[name] for name in ("source", "shown", "events", "untaken", "placed")},
        {name: sql for name, sql in _PRODUCTS.items() if name not in ("temporary", "put", "rows_of")},
        {"read": "SELECT * FROM {table}"},
    ],
}
TEMPORARY = {"verify": [load("sinks.postgres", "shadow.sql")["temporary"], _PRODUCTS["temporary"]]}
"""Tables of the session, which the statements after them use."""
PLACES = {
    "pg_temp.{table}": "pg_temp.source_products",
    "{schema}": "catalog",
    "{table}": "shop.products_staging",
    "{columns}": "style_no",
}


def granted() -> tuple[str, list[str]]:
    """(what comes before `millstream migrate`, the grants after it)."""
    before, after, *_ = (text for language, text in code_blocks(ROOT / "docs" / "security.md") if language == "sql")
    return before, [line.strip() for line in after.splitlines() if line.startswith("GRANT")]


def renamed(sql: str, prefix: str) -> str:
    """Roles belong to the whole server: ours get names of this test's own."""
    return re.sub(r"\bmillstream_(owner|relay|projection|products|verify)\b", rf"{prefix}_\1", sql)


@pytest.fixture
async def prefix(postgres_server: str) -> AsyncIterator[str]:
    name = f"t_{secrets.token_hex(4)}"
    yield name
    async with connect(postgres_server) as connection:
        for role in await connection.fetch("SELECT rolname FROM pg_roles WHERE starts_with(rolname, $1)", f"{name}_"):
            await connection.execute(f"DROP OWNED BY {role[0]}")
            await connection.execute(f"DROP ROLE {role[0]}")


@pytest.fixture
async def database(postgres_server: str, prefix: str) -> AsyncIterator[Connection]:
    """Migrated by the owner, all grants given; connected as superuser."""
    url = await asyncio.to_thread(new_database, postgres_server, migrated=False)
    before, grants = granted()
    async with connect(url) as connection:
        await connection.execute(renamed(before, prefix))
        await connection.execute(f"SET SESSION AUTHORIZATION {prefix}_owner")
        assert await migrate(connection)
        await connection.execute("RESET SESSION AUTHORIZATION")
        for grant in grants:
            await connection.execute(renamed(grant, prefix))
        yield connection
    async with connect(postgres_server) as connection:
        await connection.execute(f'DROP DATABASE "{urlsplit(url).path[1:]}" WITH (FORCE)')


async def denied(connection: Connection, role: str, program: str) -> list[str]:
    """Statements of a program that Postgres refuses to this role. Explained, not run: that checks the same rights."""
    found = []
    await connection.execute(f"SET SESSION AUTHORIZATION {role}")
    try:
        for sql in TEMPORARY.get(program, ()):
            try:
                await connection.execute(sql)
            except asyncpg.InsufficientPrivilegeError:
                return ["temporary"]
        for statements in (*PROGRAMS[program], SCHEMA_CHECK):
            for name, statement in statements.items():
                sql = statement
                for place, value in PLACES.items():
                    sql = sql.replace(place, value)
                try:
                    await connection.execute(f"EXPLAIN (GENERIC_PLAN) {sql}")
                except asyncpg.InsufficientPrivilegeError:
                    found.append(name)
    finally:
        await connection.execute("DISCARD TEMP")
        await connection.execute("RESET SESSION AUTHORIZATION")
    return found


@pytest.mark.parametrize("program", PROGRAMS)
async def test_every_statement_of_a_program_is_allowed_to_its_role(
    database: Connection, prefix: str, program: str
) -> None:
    assert await denied(database, f"{prefix}_{program}", program) == []


@pytest.mark.parametrize("program", PROGRAMS)
async def test_no_grant_can_be_left_out(database: Connection, prefix: str, program: str) -> None:
    role, single = f"{prefix}_{program}", []
    for grant in granted()[1]:
        match = re.fullmatch(r"GRANT (.*) ON (.*) TO (.*);", grant)
        assert match is not None, grant
        if f"millstream_{program}" in match[3]:
            single += [(privilege, match[2]) for privilege in match[1].split(", ")]
    assert len(single) >= 4
    needless = []
    for privilege, what in single:
        await database.execute(f"REVOKE {privilege} ON {what} FROM {role}")
        if not await denied(database, role, program):
            needless.append((privilege, what))
        await database.execute(f"GRANT {privilege} ON {what} TO {role}")
    assert needless == []


async def test_the_publication_is_the_owners_to_make(database: Connection, prefix: str) -> None:
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    (sql,) = re.findall(r"`(CREATE PUBLICATION [^`]*)`", page)
    await database.execute(f"SET SESSION AUTHORIZATION {prefix}_owner")
    await database.execute(sql)
