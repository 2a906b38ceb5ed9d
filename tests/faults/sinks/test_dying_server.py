"""A ClickHouse that is killed in the worst moments of an insert: the token alone would lose data."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from millstream.errors import AttemptExhaustedError, RetryableSinkError
from schemas.chunk import Chunk
from sinks.clickhouse import ClickHouseBatches, ClickHouseConfig
from sinks.clickhouse.http import make_client
from tests.chaos.proof import append
from tests.integration.clickhouse.data import a_chunk, a_run
from tests.support.clickhouse_server import INSERT, ClickHouseServer


class Mortal:
    """A server with a sink that outlives it."""

    def __init__(self, path: Path) -> None:
        self.path, self.server = path, ClickHouseServer(path)
        self.sink = ClickHouseBatches(ClickHouseConfig.parse(self.server.url("d"), auto_create_tables=True))

    async def restart(self) -> None:
        """With its data, on its port."""
        self.server.stop()
        self.server = await asyncio.to_thread(ClickHouseServer, self.path, "", self.server.port)

    async def deliver(self, chunk: Chunk) -> list[str]:
        """What the engine does: again after RetryableSinkError, under the next attempt where that is asked for."""
        story: list[str] = []
        while True:
            try:
                await self.sink.write_chunk(chunk)
            except RetryableSinkError:
                story.append("retried")
                await self.restart()
            except AttemptExhaustedError:
                story.append("raised")
                chunk = chunk.at_attempt(chunk.id.attempt + 1)
            else:
                return story

    async def look(self, sql: str) -> list[list[Any]]:
        """Rows."""
        client = make_client(ClickHouseConfig.parse(self.server.url("d")))
        await client.open()
        try:
            return await client.rows(sql, purpose="look")
        finally:
            await client.close()


@pytest.fixture
async def mortal(tmp_path: Path) -> AsyncIterator[Mortal]:
    made = Mortal(tmp_path / "db")
    await made.sink.open()
    yield made
    await made.sink.close()
    made.server.stop()


DISTINCT = "SELECT toInt32(count()), toInt32(uniqExact(_offset)), toInt32(max(_offset)) FROM d.redis_records_raw"


async def test_a_server_killed_between_token_and_part_has_the_chunk_once_under_the_next_attempt(
    mortal: Mortal,
) -> None:
    # notes/sinks.md: TOKEN ALONE CAN LOSE DATA. Killed at the rename itself, every time (tests/support/dying.py)
    run = a_run()
    assert await mortal.deliver(a_chunk(run, 0, 9)) == []
    mortal.server.fault("die_at_rename")
    assert await mortal.deliver(a_chunk(run, 10, 19)) == ["retried", "raised"]
    assert await mortal.look(DISTINCT) == [[20, 20, 19]]


MOMENTS = [
    (mode, statement)
    for mode in ("die_before", "die_after", "die_at_rename")
    for statement in (INSERT, "_offset BETWEEN", "KILL QUERY")
]


async def _killed(mortal: Mortal, lives: int, seed: int) -> list[str]:
    rng, run, stories = random.Random(seed), a_run(), list[str]()
    deck: list[tuple[str, str]] = []
    for n in range(lives):
        deck = deck or rng.sample(MOMENTS, len(MOMENTS))
        mode, match = deck.pop()
        mortal.server.fault(mode, match=match)
        if match != INSERT:
            mortal.server.fault("drop_after")  # only an unknown outcome makes the sink count and kill
        stories += await mortal.deliver(a_chunk(run, n * 100, n * 100 + 99))
    assert await mortal.look(DISTINCT) == [[lives * 100, lives * 100, lives * 100 - 1]]
    return stories


def _seed() -> int:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 30))
    print(f"CHAOS_SEED={seed}")
    return seed


@pytest.mark.faults
@pytest.mark.timeout(3600)
async def test_a_server_killed_at_any_step_of_an_insert_or_of_its_retry_has_every_chunk_once(mortal: Mortal) -> None:
    lives = int(os.environ.get("FAULTS_LIVES") or 30)
    stories = await _killed(mortal, lives, seed := _seed())
    assert stories.count("retried") >= lives
    assert lives < len(MOMENTS) or "raised" in stories
    append("faults.jsonl", attack="clickhouse_killed", seed=seed, chunks=lives, deaths=stories.count("retried"),
           attempts_raised=stories.count("raised"), faults=0)  # fmt: skip
