"""Migrations: numbered SQL files, applied in order, each once, each in a transaction of its own."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files
from typing import NamedTuple

from millstream.errors import ConfigError
from millstream.logs import get_logger
from millstream.postgres.client import Connection

DIRECTORY = __package__
_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_LOCK = 0x6D696C6C
"""Advisory lock: two processes that migrate wait for one another."""

_CREATE = """
CREATE SCHEMA IF NOT EXISTS millstream;
CREATE TABLE IF NOT EXISTS millstream.migrations (
    version     integer     PRIMARY KEY,
    name        text        NOT NULL,
    sha256      text        NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT now()
);
"""

log = get_logger(__name__)


class Migration(NamedTuple):
    """One file."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Digest of its text: an applied file must not be edited."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations(package: str = DIRECTORY) -> list[Migration]:
    """The files of the package, in order. Raises ConfigError if a number is missing or used twice."""
    found = []
    for entry in files(package).iterdir():
        if match := _NAME.fullmatch(entry.name):
            found.append(Migration(int(match[1]), entry.name, entry.read_text("utf-8")))
    found.sort()
    for wanted, migration in enumerate(found, 1):
        if migration.version != wanted:
            raise ConfigError(f"{package}: expected migration {wanted:04d}, found {migration.name}")
    return found


def schema_sql(package: str = DIRECTORY) -> str:
    """The full schema as one script: what all migrations add up to (held by a test)."""
    return files(package).joinpath("schema.sql").read_text("utf-8")


async def pending(connection: Connection, package: str = DIRECTORY) -> list[Migration]:
    """Migrations that are not applied yet. Raises ConfigError if the database does not fit the files."""
    known = migrations(package)
    exists = await connection.fetchval("SELECT to_regclass('millstream.migrations') IS NOT NULL")
    rows = await connection.fetch("SELECT version, name, sha256 FROM millstream.migrations") if exists else []
    applied = {row["version"]: row for row in rows}
    for migration in known:
        row = applied.pop(migration.version, None)
        if row is not None and row["sha256"] != migration.sha256:
            raise ConfigError(
                f"migration {migration.name} was applied with another text ({row['name']}): applied files are never "
                "edited; write a new one"
            )
    if applied:
        newest = max(applied)
        raise ConfigError(
            f"the database has migration {newest:04d} ({applied[newest]['name']}), which this millstream does not "
            "know: it is older than the database; upgrade it"
        )
    return known[len(rows) :]


async def migrate(connection: Connection, package: str = DIRECTORY) -> list[str]:
    """Apply what is pending; names of the files applied. Raises ConfigError, PostgresError (asyncpg's own)."""
    done = []
    await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
    try:
        await connection.execute(_CREATE)
        for migration in await pending(connection, package):
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute(
                    "INSERT INTO millstream.migrations (version, name, sha256) VALUES ($1, $2, $3)",
                    migration.version,
                    migration.name,
                    migration.sha256,
                )
            done.append(migration.name)
            log.info("migration_applied", name=migration.name)
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)
    return done


async def require_migrated(connection: Connection) -> None:
    """Raise ConfigError, with the command to run, unless every migration is applied."""
    if left := await pending(connection):
        names = ", ".join(m.name for m in left)
        raise ConfigError(f"the database lacks {len(left)} migrations ({names}): run `millstream migrate`")
