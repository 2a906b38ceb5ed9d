"""Processes that begin with everything imported: a worker starts in 0.1 s instead of 3, so that a death is cheap.

`python -m tests.chaos.forks FD` imports what workers and feeders import and forks a process for each request that comes
over the socket FD. Such a process is real: its own pid, session, environment, log, random numbers and state, killed by
kill -9 like any other; it runs what `python -m MODULE ARGUMENTS` runs. What it does not do again is to start the
interpreter and to import, so part of all lives go on starting as `faust -A ...` (fleet.py).

The server has no threads and no connections, so there is nothing that a fork could tear apart.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PRELOAD = (
    "faust.cli.faust", "faust.transport.drivers.aiokafka", "faust.web.drivers.aiohttp", "faust.livecheck",
    "streams.engine.app", "streams.engine.consumer", "streams.engine.plain", "streams.ledger",
    "streams.cli", "tables.table", "sources.feed", "schemas.control", "schemas.rdb", "sinks.factory",
    "sinks.parquet", "sinks.clickhouse", "millstream.failpoints", "tests.chaos.failpoints",
    "tests.chaos.hangs", "pandas", "uvloop",
)  # fmt: skip
_MESSAGE = 1 << 17
_LIBC = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: reaches stopped processes too


class Forked:
    """One process, with the part of Popen's interface that the fleet uses."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server, self.pid = server, pid

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it lives."""
        self._server.listen()
        return self._server.ended.get(self.pid)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # ended, and its end is being told
                os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        """Exit code."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return code


class ForkServer:
    """The server's client: one for the whole process, see `shared`."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _MESSAGE)
        command = [sys.executable, "-m", __name__, str(theirs.fileno())]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
        theirs.close()
        self._lock = threading.Lock()
        self._started: list[int] = []
        self.ended: dict[int, int] = {}

    def start(self, module: str, arguments: Sequence[str], env: Mapping[str, str], log: Path, stdin: bytes) -> Forked:
        """Start `python -m module arguments`, its output appended to `log`."""
        request = {
            "module": module,
            "arguments": list(arguments),
            "env": dict(env),
            "log": str(log),
            "stdin": stdin.decode(),
        }
        log.touch()  # there from the start, as Popen's
        with self._lock:
            self._socket.send(json.dumps(request).encode())
            while not self._started:
                self._read(block=True)
            return Forked(self, self._started.pop())

    def listen(self) -> None:
        """Hear of those that ended."""
        with self._lock:
            while self._read(block=False):
                pass

    def _read(self, *, block: bool) -> bool:
        try:
            data = self._socket.recv(_MESSAGE, 0 if block else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        assert data, f"the fork server ended with {self._process.wait(10)}"
        told: dict[str, int] = json.loads(data)
        if "status" in told:
            self.ended[told["pid"]] = told["status"]
        else:
            self.ended.pop(told["pid"], None)  # a pid may come again
            self._started.append(told["pid"])
        return True

    def close(self) -> None:
        """End it, and with it all that it started."""
        self._process.kill()
        self._process.wait()
        self._socket.close()


@cache
def shared() -> ForkServer:
    """The one of this process; it and all that it started end with this process."""
    server = ForkServer()
    atexit.register(server.close)
    return server


# ---------------------------------------------------------------------- the server
def _serve(requests: socket.socket) -> dict[str, Any]:
    """Fork at each request, tell of each end. Comes back in the forked processes only, with their request."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([requests, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    status = os.waitstatus_to_exitcode(ended[1])
                    requests.send(json.dumps({"pid": ended[0], "status": status}).encode())
        if requests in ready:
            try:
                data = requests.recv(_MESSAGE)
            except ConnectionResetError:
                data = b""
            if not data:
                os._exit(0)  # the client has ended
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for end in (wake, woken):
                    os.close(end)
                requests.close()
                request: dict[str, Any] = json.loads(data)
                return request
            requests.send(json.dumps({"pid": pid}).encode())


def _become(request: dict[str, Any]) -> None:
    """Everything that a process of its own would have."""
    die_with_parent()
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    given, filled = os.pipe()
    os.write(filled, request["stdin"].encode())
    for mine, standard in ((given, 0), (log, 1), (log, 2)):
        os.dup2(mine, standard)
    for end in (log, given, filled):
        os.close(end)
    os.environ.clear()
    os.environ.update(request["env"])
    from faust.cli.faust import cli

    from millstream import failpoints
    from tests.chaos import hangs

    hangs.install()
    failpoints.arm(
        os.environ.get("MILLSTREAM_FAILPOINTS", ""),
        int(os.environ["MILLSTREAM_SEED"]),
        os.environ["MILLSTREAM_FAILPOINT_LOG"],
    )
    sys.argv = [request["module"], *request["arguments"]]
    if request["module"] == "faust":  # what the console script does
        cli()
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _main() -> None:
    die_with_parent()
    for module in PRELOAD:
        with contextlib.suppress(ModuleNotFoundError):  # an optional one of a library
            importlib.import_module(module)
    import gc

    gc.collect()
    gc.freeze()  # what all share is not copied by a collection
    assert threading.active_count() == 1
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    _main()
