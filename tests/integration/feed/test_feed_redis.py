"""Feeding from a Redis: a dump that breaks off is a run of its own, and what was fed is not fetched again.

The master is played by the test; that real ones send the same is shown in tests/integration/redis.
"""

from __future__ import annotations

import asyncio
import io
import os
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Message

from bench.make_rdb import write_mixed
from millstream.errors import ConfigError
from millstream.settings import Settings
from schemas.control import add_digest, label_of, read_body
from schemas.names import records_topic
from sources.feed import FeedJob, FeedResult, feed_file
from sources.feeders import FeedError, feed_all
from sources.rdb import RdbReader
from sources.redis import RedisEndpoint, RedisSourceError
from tests.support.kafka import read_all
from tests.support.redis_master import Caller, Script, master

ROWS = 40_000


@pytest.fixture
def settings(kafka: str, namespace: str) -> Settings:
    return Settings(bootstrap_servers=kafka, namespace=namespace, redis_retry_timeout=0.5)


@pytest.fixture(scope="module")
def rdb(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("rdb") / "a.rdb"
    write_mixed(path, ROWS, dbs=2)
    return path.read_bytes()


def job(endpoint: RedisEndpoint, **others: Any) -> FeedJob:
    return FeedJob(
        **{"redis": endpoint, "cluster": "c", "instance": "i:1", "batch_ts": 1_795 * 10**15, "instances": ["i:1"]}
        | others
    )


async def feed(settings: Settings, script: Script, **others: Any) -> FeedResult:
    """Against a master that plays `script`."""
    async with master(script) as endpoint:
        return await asyncio.to_thread(feed_file, settings, job(endpoint, **others))


def runs(settings: Settings) -> list[list[Message]]:
    """What is in the topic, run by run."""
    assert settings.bootstrap_servers
    found: dict[str, list[Message]] = {}
    for message in read_all(settings.bootstrap_servers, records_topic("c", "i:1", settings.namespace)):
        found.setdefault(label_of(message.headers() or []).run.run_id, []).append(message)
    return list(found.values())


def kinds(run: list[Message]) -> str:
    """Like `begin rows done`."""
    return " ".join(dict.fromkeys(label_of(m.headers() or []).kind for m in run))


def breaking_off(data: bytes, times: int, diskless: bool = False) -> Script:
    """A master that breaks off so many dumps in the middle, and then sends one."""

    async def play(caller: Caller) -> None:
        await caller.shake_hands()
        await caller.dump(data, diskless=diskless, of=len(data) // 2 if caller.number < times else None)

    return play


@pytest.mark.parametrize("diskless", [False, True], ids=["disk", "diskless"])
async def test_a_dump_that_breaks_off_is_begun_anew_as_another_run(
    settings: Settings, rdb: bytes, diskless: bool
) -> None:
    result = await feed(settings, breaking_off(rdb, 2, diskless))
    assert (result.outcome, result.rows, result.resumed) == ("fed", ROWS, False)
    *broken, whole = await asyncio.to_thread(runs, settings)
    assert len(broken) == 2
    assert {kinds(run) for run in broken} <= {"begin rows", "begin"}
    assert kinds(whole) == "begin rows done"
    expected = pa.Table.from_batches(list(RdbReader(io.BytesIO(rdb))))
    values = [m.value() or b"" for m in whole[1:-1]]
    rows = pa.concat_tables([pa.ipc.open_stream(value).read_all() for value in values])
    assert rows.equals(expected)
    done: Any = read_body("done", whole[-1].value())
    assert (done.rows, done.begin, done.digest) == (ROWS, whole[0].offset(), add_digest(0, values))


async def test_what_was_fed_is_not_fetched_again_and_another_server_is_refused(settings: Settings, rdb: bytes) -> None:
    calls = []
    play = breaking_off(rdb, 0)

    async def counted(caller: Caller) -> None:
        calls.append(1)
        await play(caller)

    async with master(counted) as endpoint:
        assert (await asyncio.to_thread(feed_file, settings, job(endpoint))).outcome == "fed"
        assert (await asyncio.to_thread(feed_file, settings, job(endpoint))).outcome == "already"
    assert calls == [1]
    with pytest.raises(ConfigError, match=r"was fed from redis://127.*now it is redis://127\.0\.0\.1:1: another file"):
        await asyncio.to_thread(feed_file, settings, job(endpoint.at("127.0.0.1", 1)))


async def test_three_dumps_that_break_off_abort_the_run_and_the_next_start_begins_anew(
    settings: Settings, rdb: bytes
) -> None:  # RU-68
    result = await feed(settings, breaking_off(rdb, 99))
    assert result.outcome == "aborted"
    assert "closed the connection after" in result.reason
    assert "It was begun 3 times" in result.reason
    again = await feed(settings, breaking_off(rdb, 0))
    assert (again.outcome, again.rows) == ("fed", ROWS)
    found = await asyncio.to_thread(runs, settings)
    assert len(found) == 4
    assert kinds(found[2]).endswith("abort")
    assert kinds(found[3]) == "begin rows done"


async def test_a_server_that_refuses_has_nothing_fed_and_nothing_begun(settings: Settings) -> None:
    async def play(caller: Caller) -> None:
        await caller.command()
        await caller.say(b"-NOAUTH Authentication required.\r\n")

    with pytest.raises(RedisSourceError, match="asks for a password"):
        await feed(settings, play)
    assert await asyncio.to_thread(runs, settings) == []


async def test_a_server_that_does_not_come_back_aborts_what_was_begun(settings: Settings, rdb: bytes) -> None:

    async def play(caller: Caller) -> None:
        if caller.number:
            await caller.command()
            await caller.say(b"-LOADING Redis is loading the dataset in memory\r\n")
            return
        await caller.shake_hands()
        await caller.dump(rdb, of=len(rdb) // 2)

    result = await feed(settings, play)
    assert (result.outcome, "LOADING" in result.reason) == ("aborted", True)
    (run,) = await asyncio.to_thread(runs, settings)
    assert kinds(run).endswith("abort")


async def test_a_corrupt_dump_is_aborted_at_once_by_the_name_of_its_server(settings: Settings, rdb: bytes) -> None:
    data = rdb[:-8] + b"12345678"
    async with master(breaking_off(data, 0)) as endpoint:
        result = await asyncio.to_thread(feed_file, settings, job(endpoint))
    assert result.outcome == "aborted"
    assert result.reason.startswith(f"the dump of {endpoint.address}: the checksum is ")


async def test_slots_are_filled_for_the_source_they_belong_to(settings: Settings, rdb: bytes) -> None:
    await feed(settings, breaking_off(rdb, 0), slots="codis")
    (run,) = await asyncio.to_thread(runs, settings)
    rows = pa.ipc.open_stream(run[1].value()).read_all()
    assert rows["codis_slot"].null_count == 0
    assert rows["redis_slot"].null_count == rows.num_rows


async def test_a_feeder_that_is_killed_in_the_middle_begins_anew_as_another_run(settings: Settings, rdb: bytes) -> None:
    environment = os.environ | {
        "MILLSTREAM_BOOTSTRAP_SERVERS": str(settings.bootstrap_servers),
        "MILLSTREAM_NAMESPACE": settings.namespace,
    }
    dies = environment | {"MILLSTREAM_FAILPOINTS": "feed.after_commit=kill"}

    async def play(caller: Caller) -> None:
        await caller.shake_hands()
        await caller.dump(rdb, of=None if caller.number else len(rdb) // 2)
        if not caller.number:
            await asyncio.sleep(1000)  # what has come is committed meanwhile, and the feeder killed behind it

    async with master(play) as endpoint:
        killed = await feed_all([job(endpoint)], 1, lambda *_: None, dies)
        assert isinstance(killed["i:1"], FeedError)
        again = (await feed_all([job(endpoint)], 1, lambda *_: None, environment))["i:1"]
    assert isinstance(again, FeedResult)
    assert (again.outcome, again.rows, again.resumed) == ("fed", ROWS, False)
    first, second = await asyncio.to_thread(runs, settings)
    assert "done" not in kinds(first)
    assert kinds(second) == "begin rows done"
