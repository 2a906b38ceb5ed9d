"""What a server, a network and a second worker can do to an insert, on our server with its faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from millstream.errors import AttemptExhaustedError, ConfigError, RetryableSinkError, SinkError
from sinks.clickhouse import ClickHouseBatches, ClickHouseConfig
from sinks.clickhouse.client import make_client
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
    served: Place, server: ClickHouseServer, batches: Batches
) -> None:
    sink, chunk = await batches(served, send_timeout=0.7), a_chunk(a_run(), 0, 9)
    server.fault("hang_running")
    with pytest.raises(RetryableSinkError, match=r"no answer within 0.7 s, the outcome is unknown"):
        await sink.write_chunk(chunk)
    assert server.hanging() == 1
    assert (await sink.write_chunk(chunk)).rows == 10
    await until(lambda: server.hanging() == 0, 5, "the killed insert to end")
    assert await served.count() == 10


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
