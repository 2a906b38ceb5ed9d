"""Postgres: the embedded server, connections, and SQL in named files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from millstream.postgres.client import Connection, Pool, connect, create_pool, naming
from millstream.postgres.embedded import EmbeddedPostgres
from millstream.postgres.queries import load
from millstream.settings import Settings

__all__ = [
    "Connection",
    "EmbeddedPostgres",
    "Pool",
    "connect",
    "create_pool",
    "load",
    "naming",
    "postgres_from",
]


@asynccontextmanager
async def postgres_from(settings: Settings) -> AsyncIterator[str]:
    """URL of the server that is configured; else of an embedded one, stopped at the end. Raises PostgresError."""
    if settings.postgres_url is not None:
        yield settings.postgres_url.get_secret_value()
    else:
        async with EmbeddedPostgres(settings.data_dir / "postgres") as server:
            yield server.url
