"""A world for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from millstream.postgres import Connection, connect
from tests.conftest import MakeTopic
from tests.integration.replay.world import PARTITIONS, World


@pytest.fixture
def world(kafka: str, postgres: str, make_topic: MakeTopic, tmp_path: Path) -> World:
    return World(kafka, postgres, make_topic("replay", PARTITIONS), tmp_path)


@pytest.fixture
async def db(postgres: str) -> AsyncIterator[Connection]:
    async with connect(postgres) as connection:
        yield connection
