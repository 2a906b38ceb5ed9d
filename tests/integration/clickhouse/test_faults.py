"""What a server, a network and a second worker can do to an insert, on our server with its faults."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from millstream.errors import AttemptExhaustedError, ConfigError, RetryableSinkError, SinkError
from sinks.clickhouse import ClickHouseBatches, ClickHouseConfig
from sinks.clickhouse.http import make_client
from tests.integration.clickhouse.conftest import Batches, Place
from tests.integration.clickhouse.data import a_chunk, a_run
from tests.support.clickhouse_server import INSERT, ClickHouseServer
from tests.support.waiting import until


def _counts(statements: list[str]) -> int:
    return sum("SELECT count()" in s and "_offset BETWEEN" in s for s in statements)


async def test_the_happy_path_is_one_statement_per_chunk(
    served: Place, server: ClickHouseServer, batches: Batches
) -> None:
    sink, run = await batches(served), a_run()
    await sink.write_chunk(a_chunk(run, 0, 9))
    server.statements(clear=True)
    await sink.write_chunk(a_chunk(run, 10, 19))
    seen = server.statements()
    assert len(seen) == 1
    assert INSERT in seen[0]


@pytest.mark.parametrize(
    ("mode", "arguments", "present"),
    [
        ("error", {"status": 503}, 0),
        ("error", {"code": 252}, 0),
        ("error", {"code": 241}, 0),
        ("error", {"code": 202}, 0),
        ("error", {"code": 210}, 0),
        ("error", {"code": 242}, 0),
        ("error", {"code": 999}, 0),
        ("error_after", {"status": 500}, 10),
        ("error_after", {"code": 159}, 10),
        ("drop_before", {}, 0),
        ("drop_after", {}, 10),
    ],
)
async def test_a_transient_error_is_retryable_and_the_retry_makes_the_chunk_whole(
    served: Place, server: ClickHouseServer, batches: Batches, mode: str, arguments: dict[str, int], present: int
) -> None:
    # T3, T5: before or after the commit, the sink cannot know; the retry kills, counts, and inserts only what lacks
    sink, chunk = await batches(served), a_chunk(a_run(), 0, 9)
    server.fault(mode, **arguments)
    with pytest.raises(RetryableSinkError, match=r"could not insert rdb.records.c.i") as failed:
        await sink.write_chunk(chunk)
    if "code" in arguments:
        assert f"code {arguments['code']}" in str(failed.value)
    assert await served.count() == present
    server.statements(clear=True)
    assert (await sink.write_chunk(chunk)).rows == 10
    assert await served.count() == 10
    seen = server.statements(clear=True)
    assert any(s.startswith("KILL QUERY") for s in seen)
    assert sum(INSERT in s for s in seen) == (0 if present else 1)
    await sink.write_chunk(a_chunk(a_run(), 10, 19))
    assert _counts(server.statements()) == 0  # the outcome of the other chunk is known again


async def test_the_driver_never_sends_an_insert_twice_by_itself(
    served: Place, server: ClickHouseServer, batches: Batches
) -> None:
    sink, chunk = await batches(served), a_chunk(a_run(), 0, 9)
    for mode in ("drop_before", "drop_after", "error"):
        server.statements(clear=True)
        server.fault(mode, status=503)
        with pytest.raises(RetryableSinkError):
            await sink.write_chunk(type(chunk)(a_chunk(a_run(), 0, 9).id, chunk.records, a_run(n=len(mode))))
        assert sum(INSERT in s for s in server.statements()) == 1


async def test_a_token_that_was_spent_without_its_part_asks_for_the_next_attempt(
    served: Place, server: ClickHouseServer, batches: Batches
) -> None:
    # design hole a: ClickHouse logs the token before the part is visible; a server killed in between acknowledges the
    # same token and holds nothing
    sink, chunk = await batches(served), a_chunk(a_run(), 0, 9)
    server.fault("swallow")
    with pytest.raises(RetryableSinkError):
        await sink.write_chunk(chunk)
    assert await served.count() == 0
    with pytest.raises(AttemptExhaustedError, match="holds 0 of its 10 rows"):
        await sink.write_chunk(chunk)
    assert await served.count() == 0
    assert (await sink.write_chunk(chunk.at_attempt(1))).rows == 10
    assert await served.count() == 10


async def test_a_spent_token_is_found_out_by_the_next_life_too(
    served: Place, server: ClickHouseServer, batches: Batches
) -> None:
    run = a_run()
    server.fault("swallow")
    with pytest.raises(RetryableSinkError):
        await (await batches(served)).write_chunk(a_chunk(run, 0, 9))
    successor, replay = await batches(served), a_chunk(run, 0, 9, replayed=True, generation=2)
    assert await successor.have(replay) is None
    with pytest.raises(AttemptExhaustedError):
        await successor.write_chunk(replay)
    assert (await successor.write_chunk(replay.at_attempt(1))).rows == 10
    assert await served.count() == 10


async def test_an_insert_without_an_answer_times_out_and_is_killed_before_counting(
    served: Place, server: ClickHouseServer, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, run = await batches(served), a_run()
    await sink.write_chunk(a_chunk(run, 0, 9))
    chunk = a_chunk(run, 10, 19)  # of this one nothing is sent but the insert
    server.fault("hang_running")
    with monkeypatch.context() as brief:
        brief.setattr(sink._client, "_config", served.config(send_timeout=0.7))
        with pytest.raises(RetryableSinkError, match=r"no answer within 0.7 s, the outcome is unknown"):
            await sink.write_chunk(chunk)
    await until(lambda: server.hanging() == 1, 5, "the insert to run")
    assert (await sink.write_chunk(chunk)).rows == 10
    await until(lambda: server.hanging() == 0, 5, "the killed insert to end")
    assert await served.count() == 20


async def test_a_paused_owners_insert_that_arrives_late_writes_nothing(
    served: Place, server: ClickHouseServer, batches: Batches
) -> None:
    # hole a, T6, T7: its generation was overtaken while it was on its way; not even a new attempt can double the rows
    old, new, run = await batches(served), await batches(served), a_run()
    await old.write_chunk(a_chunk(run, 0, 9, generation=1))
    server.fault("hang")
    late = asyncio.create_task(old.write_chunk(a_chunk(run, 10, 19, generation=1)))
    await until(lambda: server.hanging() == 1, 5, "the insert to be on its way")
    replay = a_chunk(run, 10, 19, generation=2, replayed=True)
    assert await new.have(replay) is None
    await new.write_chunk(replay.at_attempt(1))
    server.release()
    with pytest.raises(SinkError, match="lost"):
        await late
    assert await served.count() == 20


async def test_two_workers_that_write_one_chunk_at_once_write_it_once(served: Place, batches: Batches) -> None:
    # T6: the same token from both
    one, two, run = await batches(served), await batches(served), a_run()
    for first in range(0, 100, 10):
        chunk = a_chunk(run, first, first + 9)
        await asyncio.gather(one.write_chunk(chunk), two.write_chunk(chunk))
    assert await served.count() == 100


async def test_a_server_that_does_not_report_the_written_rows_is_counted(
    served: Place, server: ClickHouseServer, batches: Batches
) -> None:
    old, new, run = await batches(served), await batches(served), a_run()
    server.fault("quiet", count=3)
    assert (await old.write_chunk(a_chunk(run, 0, 9, generation=1))).rows == 10
    await new.write_chunk(a_chunk(run, 10, 19, generation=2))
    with pytest.raises(SinkError, match=r"lost .* generation 2 is on record, it has 1"):
        await old.write_chunk(a_chunk(run, 20, 29, generation=1))
    assert await served.count() == 20


async def test_a_server_killed_at_random_moments_holds_each_chunk_once_after_the_retries(tmp_path: Path) -> None:
    # T3: the engine dies inside of inserts, the sink lives and retries
    seed = int(os.environ.get("MILLSTREAM_TEST_SEED", "0")) or random.randrange(1 << 30)
    print(f"MILLSTREAM_TEST_SEED={seed}")
    rng, run, retries = random.Random(seed), a_run(), 0
    server = ClickHouseServer(tmp_path / "db")
    sink = ClickHouseBatches(ClickHouseConfig.parse(server.url("d"), auto_create_tables=True))
    await sink.open()

    async def deliver(first: int) -> None:
        nonlocal retries
        chunk = a_chunk(run, first, first + 999)
        while True:
            try:
                await sink.write_chunk(chunk)
                return
            except RetryableSinkError:
                retries += 1
                await asyncio.sleep(0.05)
            except AttemptExhaustedError:
                chunk = chunk.at_attempt(chunk.id.attempt + 1)

    delivered = 0

    async def work() -> None:
        nonlocal delivered
        while not enough.is_set():
            await deliver(delivered * 1000)
            delivered += 1

    enough = asyncio.Event()
    try:
        working = asyncio.create_task(work())
        for _life in range(3):
            goal = delivered + 4
            await until(lambda: delivered >= goal, 20, "some chunks")  # noqa: B023
            await asyncio.sleep(rng.uniform(0, 0.03))  # a moment somewhere inside of the next chunk
            await asyncio.to_thread(server.stop)
            server = await asyncio.to_thread(ClickHouseServer, tmp_path / "db", "", server.port)
        enough.set()
        await working
        assert retries >= 3
        assert await sink.count_by_instance(run.batch) == {run.instance: delivered * 1000}
        looker = make_client(ClickHouseConfig.parse(server.url("d")))
        await looker.open()
        distinct = "SELECT toInt32(uniqExact(_offset)), toInt32(max(_offset)) FROM d.redis_records_raw"
        assert await looker.rows(distinct, purpose="check") == [[delivered * 1000, delivered * 1000 - 1]]
        await looker.close()
    finally:
        enough.set()
        await sink.close()
        server.stop()


async def test_a_configured_proxy_is_used(server: ClickHouseServer) -> None:
    # The server answers requests for any host, as a proxy does: the name in the URL resolves nowhere.
    proxy = f"http://127.0.0.1:{server.port}"
    client = make_client(ClickHouseConfig.parse("http://nowhere.invalid:8123?database=d", proxy_url=proxy))
    await client.open()
    assert await client.rows("SELECT 'ok'", purpose="look") == [["ok"]]
    await client.close()


async def test_a_cancelled_write_is_counted_when_it_comes_again(
    served: Place, server: ClickHouseServer, batches: Batches
) -> None:
    # a revoked partition cancels its task in the middle of an insert
    sink, chunk = await batches(served), a_chunk(a_run(), 0, 9)
    server.fault("hang")
    task = asyncio.create_task(sink.write_chunk(chunk))
    await until(lambda: server.hanging() == 1, 5, "the insert to be on its way")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.release()
    await until(lambda: server.hanging() == 0, 5, "the insert to run")
    server.statements(clear=True)
    assert (await sink.write_chunk(chunk)).rows == 10
    assert _counts(server.statements()) >= 1
    assert await served.count() == 10


@pytest.mark.parametrize(
    ("code", "hint"),
    [(60, "millstream misc clickhouse-schema"), (53, "column types"), (497, "grant"), (243, "free space")],
)
async def test_an_error_that_will_not_go_away_stops_the_worker_and_says_what_to_do(
    served: Place, server: ClickHouseServer, batches: Batches, code: int, hint: str
) -> None:
    sink = await batches(served)
    server.fault("error", code=code)
    with pytest.raises(SinkError, match=f"could not insert.*code {code}.*What to do: .*{hint}"):
        await sink.write_chunk(a_chunk(a_run(), 0, 9))


async def test_a_server_that_is_not_there_is_retryable(served: Place) -> None:
    sink = ClickHouseBatches(ClickHouseConfig.parse("http://u:tops3cret@127.0.0.1:1?database=d"))
    with pytest.raises(RetryableSinkError, match=r"http://u:\*\*\*@127.0.0.1:1\?database=d: could not connect"):
        await sink.open()
    await sink.close()


@pytest.fixture
async def locked(
    tmp_path_factory: pytest.TempPathFactory, unique: Callable[[str], str]
) -> AsyncIterator[ClickHouseServer]:
    """A server that wants a password."""
    with ClickHouseServer(tmp_path_factory.mktemp("locked"), "ada:s3cret+pa/ss") as running:
        yield running


async def test_no_password_shows_in_any_error_or_its_chain(
    locked: ClickHouseServer, caplog: pytest.LogCaptureFixture
) -> None:
    # T42
    right = f"http://ada:s3cret%2Bpa%2Fss@127.0.0.1:{locked.port}?database=default"
    client = make_client(ClickHouseConfig.parse(right))
    await client.open()
    assert await client.rows("SELECT 'ok'", purpose="look") == [["ok"]]
    locked.fault("error", match="SELECT 2", code=60)
    with pytest.raises(SinkError) as failed:
        await client.rows("SELECT 2, 's3cret+pa/ss', 's3cret%2Bpa%2Fss'", purpose="look")
    await client.close()
    with pytest.raises(SinkError) as refused:
        await make_client(ClickHouseConfig.parse(right.replace("s3cret", "wr0ng"))).open()
    assert "check user and password" in str(refused.value)
    with pytest.raises(ConfigError) as unreadable:
        ClickHouseConfig.parse(right.replace("%2F", "/").replace("database=", "db="))
    for raised in (failed.value, refused.value, unreadable.value):
        chain: BaseException | None = raised
        while chain is not None:
            for secret in ("s3cret", "wr0ng"):
                assert secret not in f"{chain!s} {chain!r} {chain.args}"
            chain = chain.__cause__ or chain.__context__
    assert "s3cret" not in caplog.text
    assert "wr0ng" not in caplog.text
