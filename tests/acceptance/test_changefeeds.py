"""Rollout and rollback of the outbox, its relay and the projection, with real workers: each side off on its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import urlopen
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner

from millstream.child import free_port
from millstream.postgres import Connection, connect
from sources.outbox import Token, Videos
from streams.cli import cli as program
from tests.acceptance.cli import Cli, clickhouse
from tests.conftest import Unique
from tests.support.kafka import produce, read_all
from tests.support.waiting import wait_until

T = TypeVar("T")
PATIENCE = 90
ME = UUID(int=9)
ONE, TWO, GONE, NEW = (UUID(int=n) for n in range(1, 5))


@pytest.fixture
def cli(kafka: str, postgres: str, tmp_path: Path, unique: Unique) -> Cli:
    return Cli(
        kafka, tmp_path, NAMESPACE=unique("feeds") + ".", POSTGRES_URL=postgres, WEB_PORT=str(free_port()),
        OUTBOX_POLL_MAX="1", SESSION_TIMEOUT="6", HEARTBEAT_INTERVAL="1", PROJECTION_CLICKHOUSE="true",
        CLICKHOUSE_URL=f"chdb://{tmp_path / 'ch'}?database=d", CLICKHOUSE_AUTO_CREATE_TABLES="true",
        VIDEOS_WAIT_MAX="60",
    )  # fmt: skip


def test_each_side_is_switched_on_and_off_on_its_own_and_nothing_is_lost(
    cli: Cli, kafka: str, postgres: str, tmp_path: Path
) -> None:  # RO-44, RO-76, RO-78 to RO-81, RO-93
    topic = cli.environment["MILLSTREAM_NAMESPACE"] + "catalog.video.events"
    # Rollout 2: the service writes, nothing reads.
    tokens = in_postgres(postgres, _first_day)
    assert json.loads(run(cli, "outbox", "stats", "--json"))["pending"] == pending(postgres) == 6
    # The relay is on, the projection off.
    with cli.worker("relay", STREAMS="streams.outbox") as worker:
        wait_until(lambda: pending(postgres) == 0, PATIENCE, "the relay to publish")
        assert worker.poll() is None
    assert worker.returncode == 0  # T22
    assert projected(postgres) == {}
    # Rollout 3: the projection too; what was published meanwhile is read.
    with cli.worker("all", web=True, STREAMS="streams.outbox,streams.projection,streams.videos") as worker:
        until_answer(cli, GONE, 410, "deleted")
        assert answer(cli, ONE, min_version=tokens[ONE].version, timeout_ms=60_000)[:2] == (200, "equal")
        status, state, body = answer(cli, ONE, min_version=1)
        assert (status, state, body["version"], body["video"]["title"]) == (200, "ahead", 3, "third")
        assert answer(cli, ONE, min_version=4)[:2] == (409, "behind")
        assert answer(cli, uuid4())[:2] == (404, "never_existed")
        token = in_postgres(postgres, lambda videos: videos.update(TWO, {"title": "read back"}))
        status, state, body = answer(cli, TWO, min_version=token.version, timeout_ms=60_000)
        assert (status, state, body["video"]["title"]) == (200, "equal", "read back")
        assert answer(cli, "x")[0] == 400
        assert worker.poll() is None
    assert worker.returncode == 0
    # Rollback: the relay is off. The service goes on writing, readers are told that they are behind.
    reading = {"STREAMS": "streams.projection,streams.videos", "PROJECTION_INBOX_RETENTION": "0.1"}
    with cli.worker("reading", web=True, **reading) as worker:
        until_answer(cli, TWO, 200, "ahead")
        wait_until(lambda: inbox_size(postgres) == 0, PATIENCE, "the inbox to be pruned")  # T19
        token = in_postgres(postgres, lambda videos: videos.update(TWO, {"title": "late"}))
        in_postgres(postgres, lambda videos: videos.create(NEW, ME, "new"))
        assert answer(cli, TWO, min_version=token.version, timeout_ms=100)[:2] == (409, "behind")
        assert answer(cli, NEW, min_version=1)[:2] == (404, "never_existed")
        assert pending(postgres) == 2
        # What waits can be taken along (RO-81), and is published once the relay is back.
        exported = run(cli, "outbox", "export").splitlines()
        assert [json.loads(line)["aggregate_id"] for line in exported] == [str(TWO), str(NEW)]
        assert run(cli, "outbox", "relay", "--once") == "published: 2\n"
        until_answer(cli, NEW, 200, "equal", min_version=1)
        assert answer(cli, TWO, min_version=token.version, timeout_ms=60_000)[:2] == (200, "equal")
        # Everything once more, which the inbox has forgotten (RO-82, T19); a stranger's records; then one event to see.
        run(cli, "outbox", "requeue", "--since", "2000-01-01T00:00:00Z")
        assert run(cli, "outbox", "relay", "--once") == "published: 9\n"
        produce(kafka, topic, [{"key": str(ONE), "value": b"\xff garbage", "partition": p} for p in range(4)])  # RO-75
        token = in_postgres(postgres, lambda videos: videos.update(ONE, {"title": "last"}))
        run(cli, "outbox", "relay", "--once")
        until_answer(cli, ONE, 200, "equal", min_version=token.version)
        wait_until(lambda: poisoned(cli, topic) == 4, PATIENCE, "the dead letters")
        assert worker.poll() is None
    assert worker.returncode == 0
    # API -> outbox -> topic -> projection: the versions line up, here and in ClickHouse (RO-76).
    expected = {str(ONE): 4, str(TWO): 3, str(GONE): 2, str(NEW): 1}
    published: dict[str, int] = {}
    for message in read_all(kafka, topic):
        if not message.headers():
            continue  # the stranger's
        headers = {name: value.decode() for name, value in message.headers() or []}
        published[headers["aggregate_id"]] = max(int(headers["version"]), published.get(headers["aggregate_id"], 0))
    written = in_postgres(postgres, lambda v: v._connection.fetch("SELECT video_id, version FROM catalog.videos"))
    assert {str(row["video_id"]): row["version"] for row in written} | {str(GONE): 2} == expected
    assert len(written) == 3
    assert published == projected(postgres) == expected
    in_clickhouse = clickhouse(tmp_path / "ch", "SELECT video_id, version FROM d.video_projection")
    assert {video: int(version) for video, version in in_clickhouse} == expected


async def _first_day(videos: Videos) -> dict[UUID, Token]:
    await videos.create(TWO, ME, "second")
    await videos.create(GONE, ME, "gone")
    await videos.delete(GONE, reason="asked")
    await videos.create(ONE, ME, "first")
    await videos.update(ONE, {"title": "first again"})
    return {ONE: await videos.update(ONE, {"title": "third"})}


def in_postgres(url: str, do: Callable[[Videos], Awaitable[T]]) -> T:
    """What a service does in the business database."""

    async def run() -> T:
        async with connect(url) as connection:
            return await do(Videos(connection))

    return asyncio.run(run())


def run(cli: Cli, *arguments: str) -> str:
    """A command that succeeds; in this process, because starting a program takes a second."""
    environment = {name: value for name, value in cli.environment.items() if name.startswith("MILLSTREAM_")}
    result = CliRunner().invoke(program, arguments, env=environment)
    assert result.exit_code == 0, result.output
    return result.stdout


def pending(url: str) -> int:
    sql = "SELECT count(*) FROM catalog.outbox_events WHERE published_at IS NULL"
    size: int = in_postgres(url, lambda v: v._connection.fetchval(sql))
    return size


def poisoned(cli: Cli, topic: str) -> int:
    return len(run(cli, "dlq", "list", topic, "--json").splitlines())


def inbox_size(url: str) -> int:
    size: int = in_postgres(url, lambda v: v._connection.fetchval("SELECT count(*) FROM catalog.inbox_events"))
    return size


def projected(url: str) -> dict[str, int]:
    async def ask(videos: Videos) -> dict[str, int]:
        connection: Connection = videos._connection
        rows = await connection.fetch("SELECT video_id, version FROM catalog.video_projection")
        return {str(row["video_id"]): row["version"] for row in rows}

    return in_postgres(url, ask)


def answer(cli: Cli, video: object, **query: int) -> tuple[int, str, dict[str, Any]]:
    """Status, state and body of `GET /videos/{id}`."""
    port = cli.environment["MILLSTREAM_WEB_PORT"]
    asked = "&".join(f"{name}={value}" for name, value in query.items())
    try:
        with urlopen(f"http://127.0.0.1:{port}/videos/{video}?{asked}", timeout=PATIENCE) as response:
            status, body = response.status, json.loads(response.read())
    except HTTPError as e:
        status, body = e.code, json.loads(e.read())
    return status, body.get("state", ""), body


def until_answer(cli: Cli, video: UUID, status: int, state: str, **query: int) -> None:
    """Once the worker answers at all, and its projection has come so far."""

    def look() -> bool:
        try:
            return answer(cli, video, **query)[:2] == (status, state)
        except URLError:
            return False

    wait_until(look, PATIENCE, f"video {video} to be {state}", every=0.2)
