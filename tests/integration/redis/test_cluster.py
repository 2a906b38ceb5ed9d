"""A real Redis Cluster: three masters, one of them with a replica."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from sources.rdb import RdbReader
from sources.redis import DumpStream, RedisSourceError
from sources.redis.cluster import Node, discover
from tests.support.redis_server import RedisServer, form_cluster, running
from tests.support.waiting import until

KEYS = 300


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    """Three masters and a replica of the first."""
    directory = tmp_path_factory.mktemp("cluster")
    options = ("--cluster-enabled", "yes")
    with ExitStack() as stack:
        nodes = [stack.enter_context(running(directory / str(i), *options)) for i in range(4)]
        form_cluster(nodes[:3], {0: nodes[3]})
        yield nodes


def dumped(node: Node, server: RedisServer) -> pa.Table:
    endpoint = server.endpoint.at(node.host, node.port)
    with closing(DumpStream(endpoint, retry_timeout=30, silence=30)) as stream:
        stream.open(lambda: None)
        return pa.Table.from_batches(list(RdbReader(stream, name="dump", slots="redis")))


async def test_each_shard_is_dumped_once_from_its_replica_if_it_has_one(cluster: list[RedisServer]) -> None:
    first, *_, replica = cluster
    slots = {}
    for i in range(KEYS):
        key = f"key:{i}"
        slots[key.encode()] = slot = first.call("CLUSTER", "KEYSLOT", key)
        cluster[min(2, slot // (16384 // 3))].client.set(key, "v")
    assert first.call("WAIT", 1, 10_000) == 1
    chosen = await discover([first.endpoint.at("127.0.0.1", 1), cluster[1].endpoint], require_slave=False)
    assert {n.address for n in chosen.nodes} == {s.address for s in (cluster[1], cluster[2], replica)}
    assert len(chosen.notes) == 2  # two masters are dumped themselves
    tables = [dumped(node, first) for node in chosen.nodes]
    rows = pa.concat_tables(tables)
    assert rows.num_rows == KEYS
    assert dict(zip(rows["key"].to_pylist(), rows["redis_slot"].to_pylist(), strict=True)) == slots
    assert all(table.num_rows for table in tables)


async def test_required_replicas_that_are_missing_are_told(cluster: list[RedisServer]) -> None:
    with pytest.raises(RedisSourceError, match="has no healthy replica, and --require-slave") as told:
        await discover([cluster[3].endpoint], require_slave=True)
    assert [server.address in str(told.value) for server in cluster] == [False, True, True, False]


async def test_what_a_user_needs_to_ask_for_the_nodes_is_told(cluster: list[RedisServer]) -> None:
    user = ("ACL", "SETUSER", "dumper", "on", ">its-password", "+ping", "+replconf", "+psync")
    assert cluster[1].call(*user)
    endpoint = msgspec.structs.replace(cluster[1].endpoint, username="dumper", password="its-password")
    with pytest.raises(RedisSourceError, match=r"run CLUSTER NODES .*ACL SETUSER dumper \+cluster\|nodes"):
        await discover([endpoint], require_slave=False)
    assert cluster[1].call(*user, "+cluster|nodes")
    assert len((await discover([endpoint], require_slave=False)).nodes) == 3


async def test_a_failed_master_without_replica_is_named_one_with_a_replica_is_not_missed(
    cluster: list[RedisServer],
) -> None:
    for server in cluster:  # not before: a node that waits for a busy machine would be taken for a failed one
        assert server.call("CONFIG", "SET", "cluster-node-timeout", "2000")
    cluster[2].stop()
    seeds = [cluster[1].endpoint]

    async def failed() -> str:
        try:
            await discover(seeds, require_slave=False)
        except RedisSourceError as exc:
            return str(exc)
        return ""

    said = await until(failed, 60, "the cluster to see that the master has failed", every=0.2)
    assert f"master {cluster[2].address} (slots 10922-16383) has failed and has no healthy replica" in said
    assert cluster[0].address not in said


async def test_a_server_without_a_cluster_is_told(tmp_path: Path) -> None:
    says = "is no node of a Redis Cluster: use from-standalone"
    with running(tmp_path) as server, pytest.raises(RedisSourceError, match=f"{server.address} {says}"):
        await discover([server.endpoint], require_slave=False)
