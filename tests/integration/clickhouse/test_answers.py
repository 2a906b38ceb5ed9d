"""Answers that are no answers: cut, half, wrong in what they claim; and a server that dies in the worst moment."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from millstream.errors import AttemptExhaustedError, RetryableSinkError, RunVoidError, SinkError
from schemas.chunk import Chunk
from sinks.clickhouse import ClickHouseBatches, ClickHouseConfig
from sinks.clickhouse.client import make_client
from tests.chaos.proof import append
from tests.integration.clickhouse.conftest import Batches, Place
from tests.integration.clickhouse.data import a_chunk, a_run, where
from tests.support.clickhouse_server import INSERT, ClickHouseServer

MANY = 40_000
"""Rows of a body that does not fit into the buffers of a connection: 3 MB."""


@pytest.mark.parametrize(
    ("mode", "arguments", "present"),
    [
        ("reset_upload", {}, 0),
        ("half_header", {}, MANY),
        ("exception_200", {"code": 241}, 0),
        ("exception_200", {"code": 252}, 0),
        ("exception_200_after", {"code": 159}, MANY),
    ],
)
async def test_an_insert_with_a_broken_answer_is_counted_and_ends_exact(
    served: Place, server: ClickHouseServer, batches: Batches, mode: str, arguments: dict[str, int], present: int
) -> None:
    # T3, T5
    sink, chunk = await batches(served), a_chunk(a_run(), 0, MANY - 1)
    server.fault(mode, **arguments)
    with pytest.raises(
        RetryableSinkError, match=r"could not insert rdb.records.c.i\[0\] 0..39999 into d-.*raw:"
    ) as told:
        await sink.write_chunk(chunk)
    if "code" in arguments:
        assert f"code {arguments['code']}" in str(told.value)
    assert await served.count() == present
    assert (await sink.write_chunk(chunk)).rows == MANY
    assert await served.count() == MANY


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (252, "MILLSTREAM_CHUNK_MAX_ROWS"),
        (241, "max_memory_usage"),
        (242, "read-only"),
        (164, "a user that may write"),
        (60, "millstream misc clickhouse-schema"),
        (81, "create the database"),
    ],
)
@pytest.mark.parametrize("mode", ["error", "exception_200"])
async def test_an_insert_that_is_refused_names_the_table_and_what_to_do(
    served: Place, server: ClickHouseServer, batches: Batches, mode: str, code: int, hint: str
) -> None:
    sink = await batches(served)
    server.fault(mode, code=code)
    with pytest.raises((SinkError, RetryableSinkError), match=rf"{served.database}.redis_records_raw:.*What.*{hint}"):
        await sink.write_chunk(a_chunk(a_run(), 0, 9))
    assert await served.count() == 0
    assert (await sink.write_chunk(a_chunk(a_run(), 0, 9))).rows == 10
    assert await served.count() == 10


READS = [
    "millstream_fence\nWHERE partition",
    "SELECT DISTINCT runs",
    "SELECT count() FROM `{db}`.redis_records_raw",
    "SELECT count() FROM `{db}`.import_batches_completed",
]
CHANGES = [
    "INSERT INTO `{db}`.millstream_fence",
    "INSERT INTO `{db}`.millstream_closed_batches",
    "KILL QUERY",
    "DELETE FROM",
    "INSERT INTO `{db}`.import_batches_completed",
]


@pytest.mark.parametrize(
    ("mode", "statement"),
    [("exception_200", s) for s in READS + CHANGES]
    + [("half_body", s) for s in READS]
    + [("drop_after", s) for s in CHANGES],
)
async def test_a_batch_is_published_exactly_whichever_of_its_statements_has_a_broken_answer(
    served: Place, server: ClickHouseServer, batches: Batches, mode: str, statement: str
) -> None:
    # T31: an exception behind a 200 must not count as done; the next try, by another worker, finishes it
    voided, valid = a_run(n=1), a_run(n=2)
    runs = {valid.instance: (valid, where(9, 20))}
    server.fault(mode, match=statement.replace("{db}", served.database), code=159)
    told = 0
    for _ in range(3):
        sink = await batches(served)
        try:
            for chunk in (a_chunk(voided, 1, 7, replayed=told > 0), a_chunk(valid, 10, 19, replayed=told > 0)):
                with suppress(RunVoidError) if told and chunk.run == voided else nullcontext():
                    assert (told and await sink.have(chunk)) or await sink.write_chunk(chunk)
            await sink.finalize_batch(valid.batch, runs)
            break
        except RetryableSinkError:
            told += 1
    # Half an answer to a read the driver may ask for again by itself.
    assert told <= 1 if mode == "half_body" else told == 1
    assert any(statement.replace("{db}", served.database) in s for s in server.statements())
    assert await served.count("redis_records_view") == 10
    assert await served.count() == 10
    assert await served.count("import_batches_completed") == 1


# ---------------------------------------------------------------------- a server that dies
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


async def _killed(mortal: Mortal, lives: int, seed: int) -> list[str]:
    rng, run, stories = random.Random(seed), a_run(), list[str]()
    for n in range(lives):
        mode = rng.choice(["die_before", "die_after", "die_at_rename"])
        match = rng.choice([INSERT, INSERT, INSERT, "_offset BETWEEN", "KILL QUERY"])
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
    append("faults.jsonl", attack="clickhouse_killed", seed=seed, chunks=lives, deaths=stories.count("retried"),
           attempts_raised=stories.count("raised"), faults=0)  # fmt: skip
