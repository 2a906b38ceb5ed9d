"""Postgres away or full while events come: retried by the wrapper, and nothing is lost or doubled (T1, T56)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from millstream.errors import RetryableSinkError
from millstream.postgres import EmbeddedPostgres, connect
from schemas.events import CREATED, UPDATED
from schemas.postgres import migrate
from sinks.postgres import PostgresConfig, PostgresStream, VideoProjection
from sinks.wrapper import SinkGroup
from tests.support.projection import chunk_of, errors, fold, held, record
from tests.unit.events.events import event

LIFE = [event(CREATED, 1, title="a"), event(UPDATED, 2, title="b"), event(UPDATED, 3, tags=["x"])]


async def test_a_server_that_is_killed_and_comes_back_gets_every_event_once(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path / "pg") as server:
        async with connect(server.url) as connection:
            await migrate(connection)
        group = SinkGroup(
            [PostgresStream(PostgresConfig(server.url, 2), VideoProjection())], retry_initial=0.05, retry_max=0.2
        )
        await group.open()
        await group.write(chunk_of([record(LIFE[0], 0)]))
        await asyncio.to_thread(server.kill)
        writing = asyncio.create_task(group.write(chunk_of([record(LIFE[1], 1), record(LIFE[2], 2)])))
        async with asyncio.timeout(120):
            while not group.retrying:
                assert not writing.done()
                await asyncio.sleep(0.01)
        await asyncio.to_thread(server.start)
        await asyncio.wait_for(writing, 120)
        async with connect(server.url) as connection:
            assert await held(connection) == fold(LIFE)
        await group.close()


@pytest.mark.parametrize("table", ["inbox_events", "video_projection", "projection_errors"])
async def test_a_full_disk_is_waited_out_with_nothing_half_written(postgres: str, table: str) -> None:
    """The server's own error (53100, disk_full), raised in one of the tables in the middle of the chunk."""
    sink = PostgresStream(PostgresConfig(postgres, 2), VideoProjection())
    await sink.open()
    chunk = chunk_of([record(e, i) for i, e in enumerate(LIFE)] + [record(LIFE[0], 3, schema_version="v2")])
    async with connect(postgres) as connection:
        await connection.execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;"
            f"CREATE TRIGGER full_disk BEFORE INSERT ON catalog.{table} EXECUTE FUNCTION full_disk()"
        )
        with pytest.raises(RetryableSinkError, match=r"offsets 0\.\.3, .*No space left on device"):
            await sink.write_chunk(chunk)
        await connection.execute(f"DROP TRIGGER full_disk ON catalog.{table}")
        assert await held(connection) == {}
        assert await errors(connection) == []
        assert (await sink.write_chunk(chunk)).details == {
            "applied": "3",
            "duplicates": "0",
            "conflicts": "0",
            "errors": "1",
        }
        assert await held(connection) == fold(LIFE)
    await sink.close()
