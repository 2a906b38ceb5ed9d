"""What the embedded servers share: a free port, a process group that ends with us, and how they are entered."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

_LOG_LINES = 25
_SCRIPT = "trap '' TERM INT; echo; cat >/dev/null; kill -9 0"


class Watchdog:
    """Leads a process group and reads from a pipe that we hold: when we are gone, however, so is the group."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # Its trap is set: from here on nothing can leave the group behind.

    @property
    def group(self) -> int:
        """Process group for the children: `Popen(…, process_group=watchdog.group)`."""
        return self._process.pid

    def kill(self) -> None:
        """End the watchdog alone; its children are the caller's to end first."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class Server:
    """A child process that serves: a context manager, sync or async, out of its blocking `start` and `stop`."""

    log_path: Path
    """Its own log."""
    _process: subprocess.Popen[bytes] | None = None
    _watchdog: Watchdog | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def log_tail(self) -> str:
        """The last lines of its log."""
        try:
            return "\n".join(self.log_path.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:])
        except OSError as e:
            return f"(no log: {e})"

    def start(self) -> None:
        """Start and wait until it answers."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it in order."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        starting = asyncio.create_task(asyncio.to_thread(self.start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting])  # The thread cannot be cancelled: what it started is stopped here.
            if starting.exception() is None:
                await asyncio.to_thread(self.stop)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(asyncio.to_thread(self.stop))


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now; somebody else may take it before it is bound.

    Below those that kernels give to outgoing connections (32768 and up): one of these might take it in the meantime.
    """
    while True:
        port = 12000 + secrets.randbelow(18000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
