"""The test kit that ships: agents over given chunks, with their tables, without a broker."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pyarrow as pa
import pytest

from millstream.errors import ConfigError
from millstream.settings import Settings
from sinks.memory import MemorySink
from streams.engine.app import App
from streams.testing import ReplayDiffersError, TopologyTest

SCHEMA = pa.schema([("k", pa.string()), ("n", pa.int64())])


@pytest.fixture
def app(tmp_path: Any) -> App:
    app = App(Settings(app_id="kit", data_dir=tmp_path))
    topic = app.chunk_topic("in", schema=SCHEMA, partitions=2)
    out = app.topic("out", value_serializer="json")
    sums = app.Table("sums", default=int)
    sink = app.sinks(MemorySink("files"))

    @app.agent(topic)
    async def count(chunks: Any) -> None:
        async for chunk in chunks:
            for row in chunk.table.to_pylist():
                sums[row["k"]] += row["n"]
                if row["n"] == 0:
                    del sums[row["k"]]
                if row["n"] < 0:
                    chunk.reject(row["_offset"], "negative")
            await out.send(key="rows", value=chunk.rows)
            await sink.write(chunk)

    return app


@pytest.fixture
async def kit(app: App) -> AsyncIterator[TopologyTest]:
    async with TopologyTest(app) as test:
        yield test


async def test_rows_go_through_agent_table_output_and_sink(kit: TopologyTest) -> None:
    outcome = await kit.send("in", [{"k": "a", "n": 2}, {"k": "a", "n": 3}, {"k": "b", "n": 1}])
    assert (kit.table("sums")["a"], kit.table("sums")["b"]) == (5, 1)
    assert outcome.values("out") == [3]
    assert outcome.sunk[0].records["_offset"].to_pylist() == [0, 1, 2]
    assert len(outcome.changes["sums"]) == 2, "one change per key, however often it was set"
    await kit.send("in", pa.table({"k": ["a"], "n": [10]}))
    assert kit.table("sums")["a"] == 15


async def test_a_deleted_key_is_a_tombstone_and_stays_away(kit: TopologyTest) -> None:  # T17
    await kit.send("in", [{"k": "a", "n": 1}])
    outcome = await kit.send("in", [{"k": "a", "n": 0}])
    assert list(outcome.changes["sums"].values()) == [None]
    assert "a" not in kit.table("sums")


async def test_bad_records_become_dead_letters_with_their_bytes(kit: TopologyTest) -> None:  # T13
    outcome = await kit.send("in", records=[b'{"k":"a","n":1}', b"\xffgarbage", b'{"k":"a","n":-1}'])
    assert [(o.topic, o.value) for o in outcome.dead_letters] == [
        ("in.dlq", b"\xffgarbage"),
        ("in.dlq", b'{"k":"a","n":-1}'),
    ]
    assert dict(outcome.dead_letters[1].headers)["millstream.dlq.reason"] == b"negative"


async def test_partitions_keep_tables_of_their_own(kit: TopologyTest) -> None:
    await kit.send("in", [{"k": "a", "n": 1}], partition=0)
    outcome = await kit.send("in", [{"k": "a", "n": 5}], partition=1)
    assert list(outcome.changes["sums"].values()) == [b"5"], "partition 1 does not see what partition 0 has"


async def test_an_agent_that_replays_otherwise_is_told_so(tmp_path: Any) -> None:  # rule 13
    app = App(Settings(app_id="odd", data_dir=tmp_path))
    topic = app.chunk_topic("in", schema=SCHEMA, partitions=1)
    out, draw = app.topic("out", value_serializer="json"), itertools.count()

    @app.agent(topic)
    async def odd(chunks: Any) -> None:
        async for _chunk in chunks:
            await out.send(value=next(draw))

    async with TopologyTest(app) as kit:
        with pytest.raises(ReplayDiffersError, match="other outputs"):
            await kit.send("in", [{"k": "a", "n": 1}])


async def test_rows_that_reach_a_sink_must_be_the_same_too(tmp_path: Any) -> None:  # rule 13
    app = App(Settings(app_id="drift", data_dir=tmp_path))
    sink, draw = app.sinks(MemorySink("files")), itertools.count()

    @app.agent(app.chunk_topic("in", schema=SCHEMA, partitions=1))
    async def drift(chunks: Any) -> None:
        async for chunk in chunks:
            await sink.write(chunk, chunk.table.set_column(1, "n", pa.array([next(draw)] * chunk.rows)))

    async with TopologyTest(app) as kit:
        with pytest.raises(ReplayDiffersError, match="other rows for a sink"):
            await kit.send("in", [{"k": "a", "n": 1}])


async def test_what_an_agent_raises_comes_out_and_nothing_is_committed(tmp_path: Any) -> None:  # T1
    app = App(Settings(app_id="bad", data_dir=tmp_path))
    topic, table = app.chunk_topic("in", schema=SCHEMA, partitions=1), app.Table("t", default=int)

    @app.agent(topic)
    async def bad(chunks: Any) -> None:
        async for _chunk in chunks:
            table["x"] = 1
            raise RuntimeError("boom")

    async with TopologyTest(app) as kit:
        with pytest.raises(RuntimeError, match="boom"):
            await kit.send("in", [{"k": "a", "n": 1}])
        assert "x" not in kit.table("t")


async def test_a_topic_nobody_reads_and_an_empty_chunk_are_refused(kit: TopologyTest) -> None:
    with pytest.raises(ConfigError, match="no agent reads topic 'nope'; read are in"):
        await kit.send("nope", [{"k": "a", "n": 1}])
    with pytest.raises(ConfigError, match="at least one record"):
        await kit.send("in", [])


IN_FAUST = """
import asyncio, sys
from millstream.settings import Settings
from streams.engine.app import App

async def main():
    app = App(Settings(app_id="plain", data_dir=sys.argv[1]))

    @app.agent(app.topic("numbers", value_type=int))
    async def double(numbers):
        async for number in numbers:
            yield number * 2

    async with double.test_context() as agent:
        event = await agent.put(21)
        assert agent.results[event.message.offset] == 42

asyncio.run(main())
"""


def test_an_ordinary_agent_is_tested_as_in_faust(tmp_path: Any) -> None:
    # In a process of its own: Faust's test context leaves event loops behind.
    subprocess.run([sys.executable, "-c", IN_FAUST, str(tmp_path)], check=True, timeout=60)
