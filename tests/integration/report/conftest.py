"""The same batches in Parquet, in ClickHouse's engine in this process, and behind the HTTP server of the tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.batch import Batch
from sinks.clickhouse import ClickHouseConfig
from sinks.clickhouse.http import make_client
from tests.integration.report.data import NEWER, OLDER, OTHER, Instances, instances
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.published import publish_clickhouse, publish_parquet


@pytest.fixture(scope="session")
def batches() -> dict[Batch, Instances]:
    return {
        OLDER: instances(OLDER, 1),
        NEWER: instances(NEWER, 2, "redis"),
        OTHER: instances(OTHER, 3, "codis", count=120),
    }


@pytest.fixture(scope="session")
def parquet(tmp_path_factory: pytest.TempPathFactory, batches: dict[Batch, Instances]) -> Path:
    directory = tmp_path_factory.mktemp("report-parquet")
    publish_parquet(directory, batches)
    return directory


@pytest.fixture(scope="session")
def chdb_url(tmp_path_factory: pytest.TempPathFactory, batches: dict[Batch, Instances]) -> str:
    url = f"chdb://{tmp_path_factory.mktemp('report-chdb')}?database=redis"
    _fill(url, batches)
    return url


@pytest.fixture(scope="session")
def http_url(tmp_path_factory: pytest.TempPathFactory, batches: dict[Batch, Instances]) -> Iterator[str]:
    with ClickHouseServer(tmp_path_factory.mktemp("report-server"), "reader:s3cret") as server:
        url = server.url("redis")
        _fill(url, batches)
        yield url


def _fill(url: str, batches: dict[Batch, Instances]) -> None:
    async def create() -> None:
        client = make_client(ClickHouseConfig.parse(url))
        await client.open()
        await client.run("CREATE DATABASE redis", purpose="prepare")
        await client.close()

    asyncio.run(create())
    publish_clickhouse(url, batches)
