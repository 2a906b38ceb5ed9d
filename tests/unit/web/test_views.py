"""The web views of a worker, asked over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from html.parser import HTMLParser

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from millstream.child import free_port
from millstream.cluster import TP
from millstream.errors import ConfigError
from millstream.settings import Settings
from streams.web.page import page
from streams.web.serve import metrics_served
from streams.web.views import install, status
from tests.unit.web.worker import Looked

EVIL = TP("<script>alert(1)</script>", 0)
Client = TestClient[web.Request, web.Application]


@pytest.fixture
def worker() -> Looked:
    return Looked(TP("orders", 0), EVIL)


@pytest.fixture
async def client(worker: Looked) -> AsyncIterator[Client]:
    install(worker)  # type: ignore[arg-type]
    async with TestClient(TestServer(worker.web.web_app)) as found:
        yield found


async def test_metrics_are_what_prometheus_reads(client: Client, worker: Looked) -> None:  # DF-71, DF-74
    worker.read(TP("orders", 0), 4, 1)
    answer = await client.get("/metrics")
    assert answer.status == 200
    families = {f.name: f for f in text_string_to_metric_families(await answer.text())}
    lag = {s.labels["stream"]: s.value for s in families["millstream_lag_records"].samples}
    assert lag["orders"] == 4
    assert families["millstream_build_info"].samples[0].labels["version"]


async def test_readiness_is_503_with_a_line_for_each_reason(client: Client, worker: Looked) -> None:  # DF-72
    assert (await client.get("/readyz")).status == 200
    assert (await client.get("/livez")).status == 200
    worker._consumer.cycle.member = None
    answer = await client.get("/readyz")
    assert (answer.status, await answer.text()) == (503, "restoring: loading an assignment\n")
    assert (await client.get("/livez")).status == 200  # not a reason to kill it
    worker._consumer.attended -= 1000
    assert (await client.get("/livez")).status == 503


async def test_the_status_tells_all_as_json(client: Client, worker: Looked) -> None:
    worker.read(TP("orders", 0), 4, 1)
    worker.open(TP("orders", 0), 1)
    told = await (await client.get("/statusz")).json()
    assert (told["ready"], told["live"], told["generation"], told["assigned"]) == (True, True, 3, 2)
    first = told["partitions"][0]  # what lags most comes first
    assert (first["topic"], first["state"], first["lag"], first["chunk"]["records"]) == ("orders", "writing", 4, 4)


class Reader(HTMLParser):
    """Everything must be closed that was opened, and nothing may come from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link"):
            self.open.append(tag)
        self.foreign += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith(("/", "data:"))]
        assert tag != "script"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("path", ["/", "/status"])
async def test_the_page_is_whole_and_takes_nothing_from_elsewhere(path: str, client: Client, worker: Looked) -> None:
    answer = await client.get(path)
    assert answer.content_type == "text/html"
    reader = Reader()
    reader.feed(await answer.text())
    assert (reader.open, reader.foreign) == ([], [])
    text = " ".join(reader.words)
    assert EVIL.topic in text  # as text
    for told in ("ready", "Partitions", "records behind", "As of"):
        assert told in text


def test_the_page_names_missing_instances_and_the_last_error(worker: Looked) -> None:
    worker.observer.found = {
        "batches": [
            {
                "cluster": "prod", "batch": "2026-11-23T08:30:00.000000000Z", "state": "failed",
                "instances": 12, "done": 1,
                "running": 0, "missing": 10, "failed": 1, "missing_instances": [f"10.0.0.{n}:6379" for n in range(10)],
                "running_instances": [], "failed_instances": ["<b>:1"], "records": 1234, "dead_letters": 0,
                "reason": "file <x> is cut off", "seconds": 100, "quiet_seconds": 4.2,
            }
        ]
    }  # fmt: skip
    told = status(worker)  # type: ignore[arg-type]
    told["sinks"] = [
        {"sink": "clickhouse", "failing_seconds": 75,
         "last_error": {"at": told["now"] - 3, "operation": "write_chunk", "error": "no route & more"}}
    ]  # fmt: skip
    told["tables"] = [{"table": "totals", "partitions": 2, "keys": 1000, "bytes": 3 << 20, "restore_left": 17}]
    reader = Reader()
    reader.feed(page(json.loads(json.dumps(told))))
    text = " ".join(reader.words)
    for words in ("1 of 12", "10.0.0.0:6379", "and 3 more", "file <x> is cut off", "failing for 75 s",
                  "write_chunk, 3.0 s ago: no route & more", "3.0 MiB", "17"):  # fmt: skip
        assert words in text, words


async def test_a_command_without_a_worker_serves_its_metrics_where_it_is_told() -> None:
    import aiohttp

    port = free_port()
    settings = Settings(metrics_port=port)
    async with metrics_served(settings), aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            assert "millstream_outbox_backlog" in await answer.text()
        with pytest.raises(ConfigError, match="--metrics-port"):
            async with metrics_served(settings):
                pass
    async with metrics_served(Settings()):
        pass  # no port: nothing is served
