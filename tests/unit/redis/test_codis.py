"""Which servers of a Codis are dumped. The dashboard is a stand-in: it answers as the real one's API is described."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from sources.redis.codis import Codis, choose, discover
from sources.redis.errors import RedisSourceError


def overview(*groups: list[tuple[str, bool]], product: str = "shop") -> dict[str, Any]:
    models = [
        {"id": i, "servers": [{"server": s, "datacenter": "", "replica_group": r} for s, r in servers], "promoting": {}}
        for i, servers in enumerate(groups, 1)
    ]
    stats = {"closed": False, "group": {"models": models, "stats": {}}, "proxy": {"models": []}, "slots": []}
    return {"version": "2018", "compile": "x", "model": {"product_name": product, "token": "t"}, "stats": stats}


QUIET = [("a:1", False), ("a:3", True), ("a:2", False)]
READ = [("b:1", False), ("b:2", True)]
ALONE = [("c:1", False)]


def chosen(*groups: list[tuple[str, bool]], require_slave: bool = False) -> Codis:
    return choose(json.dumps(overview(*groups)).encode(), require_slave=require_slave)


def test_of_each_group_a_replica_without_read_traffic_is_preferred() -> None:
    codis = chosen(QUIET, READ, ALONE, [])
    assert codis.product == "shop"
    assert codis.servers == [("a", 2), ("b", 2), ("c", 1)]
    assert [note.split(":")[0] for note in codis.notes] == ["b", "c"]


@pytest.mark.parametrize(("group", "says"), [(READ, "clients read from"), (ALONE, "no replica")])
def test_a_required_replica_that_is_missing_is_told_with_its_group(group: list[tuple[str, bool]], says: str) -> None:
    assert chosen(QUIET, require_slave=True).servers == [("a", 2)]
    with pytest.raises(RedisSourceError, match=rf"group 2 .*{says}.*--require-slave"):
        chosen(QUIET, group, require_slave=True)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"<html>", "no overview of a Codis dashboard"),
        (b"{}", "names no product"),
        (b'{"model": {"product_name": "p"}}', "no group with a server"),
        (json.dumps(overview([("nowhere", False)])).encode(), "group 1: 'nowhere' is not host:port"),
    ],
)
def test_an_answer_that_is_none_is_told(answer: bytes, says: str) -> None:
    with pytest.raises(RedisSourceError, match=says):
        choose(answer, require_slave=False)


@asynccontextmanager
async def dashboard(status: int = 200) -> AsyncIterator[str]:
    """A stand-in for the Codis dashboard."""

    async def topom(_request: web.Request) -> web.Response:
        return web.json_response(overview(QUIET, ALONE), status=status)

    app = web.Application()
    app.router.add_get("/topom", topom)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield str(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def test_the_dashboard_is_asked() -> None:
    async with dashboard() as port:
        codis = await discover(f"http://127.0.0.1:{port}/", require_slave=False)
    assert codis.servers == [("a", 2), ("c", 1)]


async def test_a_dashboard_that_fails_is_named_without_its_password() -> None:
    async with dashboard(500) as port:
        with pytest.raises(RedisSourceError, match=rf"Codis dashboard http://u:\*\*\*@127.0.0.1:{port}: .*status 500"):
            await discover(f"http://u:hush@127.0.0.1:{port}", require_slave=False)
    with pytest.raises(RedisSourceError, match=r"Codis dashboard http://127.0.0.1:1: .*Is the URL right") as told:
        await discover("http://127.0.0.1:1", require_slave=False)
    assert "hush" not in str(told.value)
