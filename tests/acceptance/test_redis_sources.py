"""`millstream dump from-standalone|from-cluster|from-codis` from the outside, against real servers."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.names import records_topic
from sources.rdb import RdbReader, codis_slot, redis_slot
from tests.acceptance.cli import Cli
from tests.support.kafka import read_all
from tests.support.redis_server import RedisServer, fill, form_cluster, running

BATCH = "2026-11-23T08:30:00.123Z"
PASSWORD = "hush-hush-hush"


@pytest.fixture
def cli(kafka: str, tmp_path: Path, unique: Any) -> Cli:
    return Cli(kafka, tmp_path, NAMESPACE=unique("redis") + ".")


def fed(cli: Cli, kafka: str, cluster: str, instance: str) -> pa.Table:
    """The rows of an instance in Kafka."""
    found = read_all(kafka, records_topic(cluster, instance, cli.environment["MILLSTREAM_NAMESPACE"]))
    rows = [m.value() for m in found if dict(m.headers() or [])["millstream.kind"] == b"rows"]
    return pa.concat_tables([pa.ipc.open_stream(value).read_all() for value in rows])


def test_a_standalone_server_becomes_the_parquet_of_its_own_file(kafka: str, tmp_path: Path) -> None:  # RU-57
    cli = Cli(kafka, tmp_path, REDIS_PASSWORD=PASSWORD)
    with running(tmp_path / "redis", "--requirepass", PASSWORD, password=PASSWORD) as server:
        fill(server, 3000)
        command = ["dump", "from-standalone", "--addr", server.address, "--cluster", "prod", "--batch-timestamp", BATCH]
        refused = cli(*command, "--password", "wrong-password", "feed")
        assert refused.returncode == 1
        assert f"{server.address} refused the password of user 'default'" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert "wrong-password" not in refused.stderr + refused.stdout  # T42
        said = cli.ok(*command, "into-parquet", "--dir", tmp_path / "out", "--sort")
        assert "published" in said
        saved = server.saved()
    (published,) = (tmp_path / "out" / "prod").rglob("*.parquet")
    assert published.name == f"127.0.0.1-{server.port}.parquet"
    with saved.open("rb") as file:
        rows = pa.Table.from_batches(list(RdbReader(file))).sort_by([("db", "ascending"), ("key", "ascending")])
    found = pq.read_table(published)
    expiry = found["expire_at"].cast(pa.int64()).to_pylist()
    assert expiry == rows["expire_at_ms"].to_pylist()
    names = [name for name in rows.column_names if name != "expire_at_ms"]
    assert found.select(names).to_pylist() == rows.select(names).to_pylist()
    logs = "".join(path.read_text("utf-8", "replace") for path in (tmp_path / "data" / "logs").glob("*"))
    assert PASSWORD not in logs


def test_a_cluster_is_fed_shard_by_shard(cli: Cli, kafka: str, tmp_path: Path) -> None:
    options = ("--cluster-enabled", "yes")
    with ExitStack() as stack:
        nodes = [stack.enter_context(running(tmp_path / str(i), *options)) for i in range(4)]
        form_cluster(nodes[:3], {1: nodes[3]})
        for i in range(90):
            nodes[min(2, redis_slot(b"key:%d" % i) // (16384 // 3))].client.set(f"key:{i}", "v")
        assert nodes[1].call("WAIT", 1, 10_000) == 1
        addresses = [node.address for node in nodes]
        command = ["dump", "--concurrency", 3, "from-cluster", "--cluster", "c", "--batch-timestamp", BATCH, "--nodes"]
        refused = cli(*command, addresses[0], "--require-slave", "feed")
        assert (refused.returncode, "has no healthy replica" in refused.stderr) == (1, True)
        done = cli(*command, f"127.0.0.1:1,{addresses[2]}", "feed")
        assert done.returncode == 0, done.stderr
        assert f"note: {addresses[0]} is a master without a healthy replica" in done.stderr
    dumped = {addresses[0], addresses[2], addresses[3]}
    assert {line.partition(": fed, ")[0] for line in done.stdout.splitlines() if ": fed, " in line} == dumped
    rows = pa.concat_tables([fed(cli, kafka, "c", instance) for instance in sorted(dumped)])
    keys = rows["key"].to_pylist()
    assert sorted(keys) == sorted(b"key:%d" % i for i in range(90))
    assert rows["redis_slot"].to_pylist() == [redis_slot(key) for key in keys]


@contextmanager
def dashboard(groups: list[list[RedisServer]]) -> Iterator[str]:
    """A stand-in for the Codis dashboard: the servers behind it are real."""
    models = [
        {"id": i, "servers": [{"server": s.address, "datacenter": "", "replica_group": False} for s in servers]}
        for i, servers in enumerate(groups, 1)
    ]
    overview = {"model": {"product_name": "shop"}, "stats": {"group": {"models": models}}}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(overview).encode() if self.path == "/topom" else b""
            self.send_response(200 if body else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_codis_is_fed_group_by_group_under_the_name_of_its_product(cli: Cli, kafka: str, tmp_path: Path) -> None:
    with (
        running(tmp_path / "a", "--requirepass", PASSWORD, kind="redis6.2", password=PASSWORD) as first,
        running(tmp_path / "b", "--requirepass", PASSWORD, kind="redis6.2", password=PASSWORD) as second,
        dashboard([[first], [second]]) as url,
    ):
        for i in range(60):
            (first, second)[codis_slot(b"key:%d" % i) % 2].client.set(f"key:{i}", "v")
        command = ["dump", "from-codis", "--dashboard", url, "--password", PASSWORD, "--batch-timestamp", BATCH]
        refused = cli(*command, "--require-slave", "feed")
        assert (refused.returncode, "group 1 (master" in refused.stderr) == (1, True)
        said = cli.ok(*command, "feed")
    assert "cluster 'shop'" in said
    rows = pa.concat_tables([fed(cli, kafka, "shop", server.address) for server in (first, second)])
    keys = rows["key"].to_pylist()
    assert sorted(keys) == sorted(b"key:%d" % i for i in range(60))
    assert rows["codis_slot"].to_pylist() == [codis_slot(key) for key in keys]
