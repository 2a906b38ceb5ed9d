"""`GET /videos/{id}`: five different answers, a wait that ends, and what is said about a bad request (RO-93, T59)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import streams
from millstream.postgres import Connection
from millstream.settings import Settings, override_settings
from schemas.events import CREATED, DELETED, UPDATED
from tests.support.projection import apply
from tests.unit.events.events import event, uuid


@pytest.fixture
async def reader(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    for name in ("app", "videos"):
        monkeypatch.delitem(streams.__dict__, name, raising=False)
    monkeypatch.delitem(sys.modules, "streams.videos", raising=False)
    with override_settings(data_dir=tmp_path, streams=["streams.videos"], postgres_url=postgres) as settings:
        assert isinstance(settings, Settings)
        _ = streams.app
        made = sys.modules["streams.videos"].reader  # type: ignore[attr-defined]
    yield made
    await made.close()
    for name in ("app", "videos"):
        streams.__dict__.pop(name, None)
    sys.modules.pop("streams.videos", None)


async def test_five_different_answers(reader: Any, database: Connection) -> None:  # T59
    await apply(database, event(CREATED, 1, title="a", tags=None), event(UPDATED, 3, title="c", tags=["x"]))
    await apply(database, event(CREATED, 1, 8, 2), event(DELETED, 2, 9, 2), event(UPDATED, 2, 10, 3))

    async def ask(video: int, **query: str) -> tuple[int, str]:
        status, body = await reader.answer(uuid(video), query)
        return status, body["state"]

    assert await ask(1) == (200, "ahead")
    assert await ask(1, min_version="2") == (200, "ahead")
    assert await ask(1, min_version="3") == (200, "equal")
    assert await ask(1, min_version="4") == (409, "behind")
    assert await ask(2) == await ask(2, min_version="2") == (410, "deleted")
    assert await ask(2, min_version="3") == (409, "behind")  # it may have been created again
    assert await ask(3) == (409, "behind")  # an update came before its creation (T45)
    assert await ask(4) == await ask(4, min_version="1") == (404, "never_existed")
    _, body = await reader.answer(uuid(1), {})
    assert (body["version"], body["video"]["title"], body["video"]["tags"]) == (3, "c", ["x"])
    assert body["video"]["occurred_at"] == "2026-01-31T12:00:03.000001+00:00"


async def test_a_reader_waits_for_the_version_it_was_promised(reader: Any, database: Connection) -> None:  # RO-93
    await apply(database, event(CREATED, 1))
    waiting = [
        asyncio.create_task(reader.answer(uuid(1), {"min_version": "2", "timeout_ms": "4999"})),
        asyncio.create_task(reader.answer(uuid(2), {"timeout_ms": "4999"})),
    ]
    await asyncio.sleep(0)
    await apply(database, event(UPDATED, 2), event(CREATED, 1, 9, 2))
    assert [(status, body["state"]) for status, body in await asyncio.gather(*waiting)] == [
        (200, "equal"),
        (200, "ahead"),
    ]


async def test_the_wait_is_cut_to_the_setting(reader: Any) -> None:  # T59
    reader._longest = 0.1
    answer = await asyncio.wait_for(reader.answer(uuid(1), {"timeout_ms": "99999999"}), 60)
    assert answer[0] == 404


@pytest.mark.parametrize(
    ("video", "query", "told"),
    [
        ("x", {}, "'x' is not a UUID"),
        (uuid(1), {"min_version": "x"}, "min_version is 'x', must be an integer from 0"),
        (uuid(1), {"min_version": "-1"}, "min_version is '-1'"),
        (uuid(1), {"min_version": "1.5"}, "min_version is '1.5'"),
        (uuid(1), {"min_version": "9" * 30}, "min_version is"),
        (uuid(1), {"min_version": "\u0661"}, "min_version is"),
        (uuid(1), {"timeout_ms": ""}, "timeout_ms is ''"),
        (uuid(1), {"version": "1"}, "no parameter 'version'"),
    ],
)
async def test_a_bad_request_is_told_what_to_send(reader: Any, video: str, query: dict[str, str], told: str) -> None:
    status, body = await reader.answer(video, query)
    assert status == 400
    assert told in body["error"]
    assert "/videos/" in body["error"]


async def test_a_database_that_is_away_is_a_503_without_its_address(reader: Any) -> None:  # T42
    reader._url = "postgresql://me:secretword@127.0.0.1:9/nowhere"
    status, body = await reader.answer(uuid(1), {})
    assert status == 503
    assert "127.0.0.1" not in str(body)
    assert "sovereign store" in body["error"]
