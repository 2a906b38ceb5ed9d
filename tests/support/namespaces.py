"""Network and mount namespaces for tests. They have no names: nothing of them outlives the processes in them.

The calling thread itself moves into a new namespace and comes back; what it starts meanwhile (processes, threads of
librdkafka) is inside. Needs root; elsewhere run the tests under `unshare --map-root-user --net --mount`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

_LIBC = ctypes.CDLL(None, use_errno=True)
_FS, _NEWNS, _NEWNET = 0x00000200, 0x00020000, 0x40000000
_KINDS = {_NEWNS: "mnt", _NEWNET: "net"}


def _call(name: str, *arguments: int) -> None:
    if getattr(_LIBC, name)(*arguments):
        error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        raise AssertionError(
            f"{name}: {error}. These tests need to be root of their namespaces: run them as root, or as "
            "`unshare --map-root-user --net --mount make faults`"
        )


@contextmanager
def _moved(kind: int) -> Iterator[None]:
    directory = Path.cwd()
    with Path(f"/proc/thread-self/ns/{_KINDS[kind]}").open() as before:
        _call("unshare", kind)
        try:
            yield
        finally:
            if kind == _NEWNS:
                _call("unshare", _FS)  # threads that were started inside share it, and would keep us there
            _call("setns", before.fileno(), kind)
            os.chdir(directory)


def run(*command: object) -> None:
    """Run a program; AssertionError with what it said if it fails."""
    assert shutil.which(str(command[0])), f"{command[0]} is missing: these tests need iproute2 and util-linux"
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


class Mounts:
    """Mounts that only this thread, and what it starts, can see."""

    def tmpfs(self, path: Path, size: str) -> None:
        """A file system in memory."""
        path.mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", f"size={size}", "millstream-test", path)


@contextmanager
def own_mounts() -> Iterator[Mounts]:
    """The calling thread sees mounts of its own from here on."""
    with _moved(_NEWNS):
        run("mount", "--make-rprivate", "/")
        yield Mounts()


class Host:
    """A network namespace with one link to the one that the test stands in. Its name is for messages."""

    def __init__(self, number: int, hub: str) -> None:
        self.name, self._link = f"h{number}", f"v{number}"
        self.address = f"10.77.{number}.2"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        gateway = f"10.77.{number}.1"
        run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._holder.pid)
        run("ip", "addr", "add", f"{gateway}/30", "dev", self._link)
        run("ip", "link", "set", self._link, "up")
        self.run("ip", "addr", "add", f"{self.address}/30", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "route", "add", f"{hub}/32", "via", gateway)

    @property
    def prefix(self) -> list[str]:
        """What to put before a command to run it there."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net"]

    def run(self, *command: object) -> None:
        """Run a program there."""
        run(*self.prefix, *command)

    def cut(self, *, up: bool = True, down: bool = True) -> None:
        """Packets from the host are lost (`up`), or those to it (`down`), without a word to either end."""
        if up:
            self.run("tc", "qdisc", "replace", "dev", "eth0", "root", "pfifo", "limit", 0)
        if down:
            run("tc", "qdisc", "replace", "dev", self._link, "root", "pfifo", "limit", 0)

    def slow(self, rate: str, limit: int) -> None:
        """Both ways: so many bits per second, and packets beyond `limit` waiting bytes are lost."""
        shape = ("root", "tbf", "rate", rate, "burst", 3000, "limit", limit)
        self.run("tc", "qdisc", "replace", "dev", "eth0", *shape)
        run("tc", "qdisc", "replace", "dev", self._link, *shape)

    def mend(self) -> None:
        """The link is as it was."""
        for prefix, link in ((self.prefix, "eth0"), ([], self._link)):
            subprocess.run([*prefix, "tc", "qdisc", "del", "dev", link, "root"], capture_output=True, check=False)

    def close(self) -> None:
        """Its processes' namespace goes, and the link with it."""
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()


class Network:
    """A network of its own: the test stands at the hub, hosts hang on it, nothing leads out."""

    HUB = "10.77.0.1"

    def __init__(self) -> None:
        run("ip", "link", "set", "lo", "up")
        run("ip", "addr", "add", f"{self.HUB}/32", "dev", "lo")
        self.hosts: list[Host] = []

    def host(self) -> Host:
        """One more."""
        self.hosts.append(Host(len(self.hosts) + 1, self.HUB))
        return self.hosts[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for host in self.hosts:
            host.close()


@contextmanager
def own_network() -> Iterator[Network]:
    """The calling thread is in a network of its own from here on: the machine's cannot be reached."""
    with _moved(_NEWNET), Network() as network:
        yield network
