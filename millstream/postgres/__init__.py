"""Postgres: the embedded server, connections, and SQL in named files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from millstream.errors import ConfigError
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
    "postgres_url",
]


def postgres_url(settings: Settings) -> str:
    """URL of the server that is configured. Raises ConfigError without one."""
    if settings.postgres_url is None:
        raise ConfigError("MILLSTREAM_POSTGRES_URL is not set: give it a URL such as postgresql://me@db:5432/shop")
    return settings.postgres_url.get_secret_value()


@asynccontextmanager
async def postgres_from(settings: Settings) -> AsyncIterator[str]:
    """URL of the server that is configured; else of an embedded one, stopped at the end. Raises PostgresError."""
    if settings.postgres_url is not None:
        yield settings.postgres_url.get_secret_value()
    else:
        async with EmbeddedPostgres(settings.data_dir / "postgres") as server:
            yield server.url
