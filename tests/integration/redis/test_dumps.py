"""Dumps off real servers are the same as the files that these servers save."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from schemas.records import WIRE
from sources.rdb import RdbReader
from sources.redis import DumpStream, RedisEndpoint, RedisSourceError, Tls, TransferDroppedError
from tests.support.redis_server import RedisServer, fill, running
from tests.support.tls_proxy import tls_proxy
from tests.support.waiting import wait_until

DISKLESS = ("--repl-diskless-sync", "yes")
DISK = ("--repl-diskless-sync", "no")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sources.redis.replica.WAIT_FIRST", 0.05)


@contextmanager
def opened(
    endpoint: RedisEndpoint, *, wait: float = 30, waiting: Callable[[], None] = lambda: None
) -> Iterator[DumpStream]:
    with closing(DumpStream(endpoint, retry_timeout=wait, silence=30)) as stream:
        stream.open(waiting)
        yield stream


def refused(endpoint: RedisEndpoint, says: str, *, wait: float = 30) -> str:
    """No dump; the text."""
    with pytest.raises(RedisSourceError, match=rf"{endpoint.address}.*{says}") as told, opened(endpoint, wait=wait):
        raise AssertionError("a dump is sent")
    return str(told.value)


def table(stream: DumpStream) -> pa.Table:
    reader = RdbReader(stream, name="dump")
    return pa.Table.from_batches(list(reader), schema=WIRE)


def rows(endpoint: RedisEndpoint) -> pa.Table:
    with opened(endpoint) as stream:
        return table(stream)


def rows_of(path: Path) -> pa.Table:
    with path.open("rb") as file:
        return pa.Table.from_batches(list(RdbReader(file)))


def by_key(table: pa.Table) -> list[dict[str, object]]:
    return sorted(table.to_pylist(), key=lambda row: (row["db"], row["key"]))


@pytest.mark.parametrize("kind", ["redis6.2", "redis8.2", "valkey9"])
@pytest.mark.parametrize("options", [DISK, DISKLESS], ids=["disk", "diskless"])
def test_a_dump_has_the_rows_of_the_file_that_the_server_saves(
    tmp_path: Path, kind: str, options: tuple[str, ...]
) -> None:
    with running(tmp_path, *options, kind=kind) as server:
        fill(server)
        assert by_key(rows(server.endpoint)) == by_key(rows_of(server.saved()))
        log = (tmp_path / "log").read_text()
        # Valkey 9 sends to sockets either way.
        mode = "disk" if options == DISK and kind != "valkey9" else "socket"
        assert mode in log.partition("BGSAVE for SYNC with target:")[2][:40]
        wait_until(lambda: server.client.info("replication")["connected_slaves"] == 0, 30, "the master to forget us")


def test_an_empty_server_gives_an_empty_dump(tmp_path: Path) -> None:  # T27
    with running(tmp_path, *DISKLESS) as server:
        assert rows(server.endpoint).num_rows == 0


def test_a_dump_larger_than_all_buffers_comes_through_while_keys_are_written(tmp_path: Path) -> None:
    with running(tmp_path, *DISKLESS, "--rdbcompression", "no") as server:
        noise = os.urandom(1 << 20)
        for i in range(24):
            server.client.set(f"big:{i:02}", noise)
        keys = []
        with opened(server.endpoint) as stream:
            for batch in RdbReader(stream, name="dump", batch_rows=1):
                keys += batch.column("key").to_pylist()
                server.client.set(f"later:{len(keys)}", noise)  # the master has them to replicate, meanwhile
        assert sorted(keys) == [b"big:%02d" % i for i in range(24)]


def test_a_dump_that_the_master_breaks_off_is_told(tmp_path: Path) -> None:
    with running(tmp_path, *DISK) as server:
        noise = os.urandom(1 << 20)
        for i in range(24):
            server.client.set(i, noise)
        with opened(server.endpoint) as stream:
            stream.read(100_000)
            server.client.client_kill_filter(_type="replica")
            with pytest.raises(TransferDroppedError, match=rf"{server.address}.* after \d+ bytes of its dump"):
                deque(iter(lambda: stream.read(1 << 20), b""), 0)


USERS = """
user default off
user dumper on >its-password +ping +psync +replconf
user reader on >its-password ~* +@read +ping
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "users.acl").write_text(USERS)
    with running(directory, "--aclfile", str(directory / "users.acl"), password="none") as server:
        yield server


@pytest.mark.parametrize(
    ("username", "password", "says"),
    [
        ("", "", "asks for a password"),
        ("dumper", "wrong-password", "refused the password of user 'dumper'"),
        ("reader", "its-password", r"does not let user 'reader' run .*ACL SETUSER reader \+ping \+replconf \+psync"),
        ("dumper", "its-password", ""),
    ],
)
def test_who_may_have_a_dump(guarded: RedisServer, username: str, password: str, says: str) -> None:
    endpoint = msgspec.structs.replace(guarded.endpoint, username=username, password=password)
    if says:
        assert not password or password not in refused(endpoint, says)  # T42
    else:
        assert rows(endpoint).num_rows == 0


def test_a_password_where_there_is_none_is_told(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        refused(msgspec.structs.replace(server.endpoint, password="something"), "has no password.*leave --password out")


def test_a_server_that_is_loading_is_waited_for(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        fill(server, 5000)
        expected = by_key(rows_of(server.saved()))
    slow = ("--key-load-delay", "1500", "--loading-process-events-interval-bytes", "1024")
    with running(tmp_path, *slow) as server:
        refused(server.endpoint, "LOADING.*MILLSTREAM_REDIS_RETRY_TIMEOUT", wait=0.2)
        while_it_waits = partial(server.call, "CONFIG", "SET", "key-load-delay", "0")
        with opened(server.endpoint, wait=60, waiting=while_it_waits) as stream:
            assert by_key(table(stream)) == expected


def test_a_replica_of_a_replica_gives_its_dump_unless_its_link_is_down(tmp_path: Path) -> None:
    with (
        running(tmp_path / "a") as first,
        running(tmp_path / "b", "--replicaof", "127.0.0.1", str(first.port)) as second,
        running(tmp_path / "c", "--replicaof", "127.0.0.1", str(second.port)) as third,
    ):
        fill(first)
        wait_until(lambda: third.client.get("expires") == b"v", 60, "the third to have it all")
        assert by_key(rows(third.endpoint)) == by_key(rows_of(first.saved()))
        third.call("REPLICAOF", "127.0.0.1", "1")
        refused(third.endpoint, "NOMASTERLINK.*a replica without its master", wait=0.2)


PEM = Path(__file__).parents[2] / "fixtures" / "tls"
CA, CERT, KEY = (str(PEM / name) for name in ("ca.pem", "client.pem", "client.key"))


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisServer, RedisEndpoint]]:
    """A server behind a proxy that speaks TLS to clients with a certificate: the packaged servers have no TLS."""
    with running(tmp_path_factory.mktemp("tls")) as server, tls_proxy(server.port, PEM) as port:
        fill(server)
        yield server, RedisEndpoint(host="127.0.0.1", port=port)


def test_a_dump_comes_through_tls(secure: tuple[RedisServer, RedisEndpoint]) -> None:
    server, endpoint = secure
    tls = Tls(ca_file=CA, cert_file=CERT, key_file=KEY)
    assert by_key(rows(msgspec.structs.replace(endpoint, tls=tls))) == by_key(rows_of(server.saved()))
    insecure = Tls(cert_file=CERT, key_file=KEY, verify=False)
    assert rows(msgspec.structs.replace(endpoint, tls=insecure)).num_rows > 0


@pytest.mark.parametrize(
    ("tls", "says"),
    [
        (None, "--tls"),
        (Tls(cert_file=CERT, key_file=KEY), "its TLS certificate is not trusted.*--tls-ca-cert"),
        (Tls(ca_file=CA), "a client certificate"),
    ],
)
def test_what_is_wrong_with_tls_is_told(secure: tuple[RedisServer, RedisEndpoint], tls: Tls | None, says: str) -> None:
    refused(msgspec.structs.replace(secure[1], tls=tls), says)


def test_tls_to_a_server_without_it_is_told(
    secure: tuple[RedisServer, RedisEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sources.redis.connection.CONNECT_SECONDS", 0.5)
    refused(msgspec.structs.replace(secure[0].endpoint, tls=Tls(ca_file=CA)), "leave --tls out")
