"""ClickHouse's engine in this process and behind our small server; one of each per test run, a database per test.

chdb is process-global: one directory at a time, so all tests here share one, and the server is a process of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sinks.clickhouse import ClickHouseBatches, ClickHouseConfig, ClickHouseStream
from sinks.clickhouse.client import Client
from sinks.clickhouse.http import make_client
from tests.support.clickhouse_server import ClickHouseServer


@dataclass
class Place:
    """A database of its own, on one of the backends, and a client to look into it."""

    url: str
    database: str
    client: Client

    def config(self, *, create: bool = True, **changes: Any) -> ClickHouseConfig:
        return ClickHouseConfig.parse(self.url, auto_create_tables=create, **changes)

    async def rows(self, sql: str) -> list[list[Any]]:
        return await self.client.rows(sql.replace("{db}", f"`{self.database}`"), purpose="look")

    async def run(self, sql: str) -> None:
        await self.client.run(sql.replace("{db}", f"`{self.database}`"), purpose="prepare")

    async def count(self, table: str = "redis_records_raw") -> int:
        return int((await self.rows(f"SELECT count() FROM {{db}}.{table}"))[0][0])


Batches = Callable[..., Awaitable[ClickHouseBatches]]
Stream = Callable[..., Awaitable[ClickHouseStream]]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseServer]:
    with ClickHouseServer(tmp_path_factory.mktemp("clickhouse-server")) as running:
        yield running


@pytest.fixture(scope="session")
def chdb_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chdb")


async def _place(url: str, database: str) -> AsyncIterator[Place]:
    client = make_client(ClickHouseConfig.parse(url))
    await client.open()
    await client.run(f"CREATE DATABASE `{database}`", purpose="prepare")
    yield Place(url, database, client)
    await client.run(f"DROP DATABASE `{database}`", purpose="clean up")
    await client.close()


@pytest.fixture(params=["chdb", "http"])
async def place(request: pytest.FixtureRequest, unique: Callable[[str], str]) -> AsyncIterator[Place]:
    """Both backends."""
    database = unique("d")
    if request.param == "chdb":
        url = f"chdb://{request.getfixturevalue('chdb_path')}?database={database}"
    else:
        url = request.getfixturevalue("server").url(database)
    async for made in _place(url, database):
        yield made


@pytest.fixture
async def served(server: ClickHouseServer, unique: Callable[[str], str]) -> AsyncIterator[Place]:
    """The server only, for what needs faults or several workers."""
    database = unique("d")
    async for made in _place(server.url(database), database):
        server.statements(clear=True)
        yield made
        server.release()
        server.fault("none")


@pytest.fixture
async def batches(request: pytest.FixtureRequest) -> AsyncIterator[Batches]:
    """`await batches(place)` is an open batch sink with its tables made; each call is another worker."""
    opened: list[ClickHouseBatches] = []

    async def make(place: Place) -> ClickHouseBatches:
        sink = ClickHouseBatches(place.config())
        await sink.open()
        opened.append(sink)
        return sink

    yield make
    for sink in opened:
        await sink.close()


@pytest.fixture
async def stream() -> AsyncIterator[Stream]:
    """`await stream(place, table)` is an open stream sink."""
    opened: list[ClickHouseStream] = []

    async def make(place: Place, table: str) -> ClickHouseStream:
        sink = ClickHouseStream(place.config(), table)
        await sink.open()
        opened.append(sink)
        return sink

    yield make
    for sink in opened:
        await sink.close()
