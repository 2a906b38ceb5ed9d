"""Connections to a database of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from millstream.postgres import Connection, connect


@pytest.fixture
async def db(postgres: str) -> AsyncIterator[Connection]:
    async with connect(postgres) as connection:
        yield connection


@pytest.fixture
async def db2(postgres: str) -> AsyncIterator[Connection]:
    async with connect(postgres) as connection:
        yield connection
