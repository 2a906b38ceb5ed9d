"""Migrations: in order, once, never edited, and the same as the full schema."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from millstream.errors import ConfigError
from millstream.postgres import connect
from millstream.postgres.embedded import _binary
from schemas.postgres import migrate, migrations, pending, require_migrated, schema_sql
from tests.acceptance.cli import Cli
from tests.support.postgres import new_database


def _dump(url: str) -> str:
    command = [str(_binary("pg_dump")), "--schema-only", "--no-owner", "--restrict-key=x", "-d", url]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


async def test_all_migrations_add_up_to_the_full_schema(postgres_server: str, postgres: str) -> None:
    whole = await asyncio.to_thread(new_database, postgres_server, migrated=False)
    async with connect(whole) as connection:
        await connection.execute(schema_sql())
    assert await asyncio.to_thread(_dump, whole) == await asyncio.to_thread(_dump, postgres)


async def test_several_that_migrate_at_once_apply_each_file_once(postgres_server: str) -> None:
    url = await asyncio.to_thread(new_database, postgres_server, migrated=False)

    async def one() -> list[str]:
        async with connect(url) as connection:
            return await migrate(connection)

    done = await asyncio.gather(*(one() for _ in range(4)))
    assert sorted(name for names in done for name in names) == [m.name for m in migrations()]


async def test_an_applied_file_that_was_edited_is_named(postgres: str) -> None:
    async with connect(postgres) as connection:
        await connection.execute("UPDATE millstream.migrations SET sha256 = 'x' WHERE version = 1")
        with pytest.raises(ConfigError, match=r"0001_positions\.sql was applied with another text"):
            await pending(connection)


async def test_a_database_that_is_newer_than_the_program_is_refused(postgres: str) -> None:
    async with connect(postgres) as connection:
        await connection.execute("INSERT INTO millstream.migrations VALUES (9999, '9999_later.sql', 'x')")
        with pytest.raises(ConfigError, match="older than the database"):
            await require_migrated(connection)


async def test_a_database_without_our_schema_is_told_the_command(postgres_server: str) -> None:
    url = await asyncio.to_thread(new_database, postgres_server, migrated=False)
    async with connect(url) as connection:
        with pytest.raises(ConfigError, match="run `millstream migrate`"):
            await require_migrated(connection)


def test_numbers_must_be_without_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gap_in_migrations"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "0002_second.sql").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"expected migration 0001, found 0002_second\.sql"):
        migrations("gap_in_migrations")


def test_the_command_migrates_says_so_and_checks(postgres_server: str, tmp_path: Path) -> None:
    url = new_database(postgres_server, migrated=False)
    millstream = Cli(None, tmp_path, POSTGRES_URL=url)
    assert millstream("migrate", "--check").returncode == 1
    assert millstream.ok("migrate").splitlines() == [f"applied: {m.name}" for m in migrations()]
    assert millstream.ok("migrate", "--check") == "up to date\n"
