"""A real Postgres for tests: one server a run, a database of its own for each test."""

from __future__ import annotations

import asyncio
import secrets
from urllib.parse import urlsplit, urlunsplit

from millstream.postgres import connect
from schemas.postgres import migrate


def new_database(url: str, *, migrated: bool = True) -> str:
    """URL of a new database on the server of `url`, with our schema in it."""

    async def make() -> str:
        name = f"t_{secrets.token_hex(6)}"
        async with connect(url) as connection:
            await connection.execute(f'CREATE DATABASE "{name}"')
        made = urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
        if migrated:
            async with connect(made) as connection:
                await migrate(connection)
        return made

    return asyncio.run(make())


def drop_database(server: str, url: str) -> None:
    """Remove what `new_database` made, whoever is connected."""

    async def drop() -> None:
        async with connect(server) as connection:
            await connection.execute(f'DROP DATABASE "{urlsplit(url).path[1:]}" WITH (FORCE)')

    asyncio.run(drop())
