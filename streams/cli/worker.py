"""A worker as a child process, for one-shot commands."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from millstream.errors import MillstreamError

STOP_SECONDS = 60.0
"""From SIGTERM to SIGKILL: above the worker's own bound (MILLSTREAM_SHUTDOWN_TIMEOUT, twice)."""
_TAIL_LINES = 25
_BANNER = ("+", "|")
"""How the lines begin that Faust prints at a start."""
_CHAIN = re.compile(r"\boperation=(?:worker_failed|\w+_retry) .*?\berror_chain=(\[.*\])")
_RETRY = re.compile(r'\boperation(?:=|": ?")\w+_retry\b')


class WorkerFailedError(MillstreamError):
    """The worker ended by itself. The text has the end of its log."""


class WorkerProcess:
    """`faust -A streams worker` with its output in a log file."""

    def __init__(self, environment: Mapping[str, str], log_path: Path, *, web: bool = False) -> None:
        """`web`: with its web views, at the address that the environment says."""
        self._environment, self.log_path = dict(environment), log_path
        self._options = [] if web else ["--without-web"]
        self._process: asyncio.subprocess.Process | None = None
        self._read = 0
        """Bytes of the log that `retrying` has seen; those of earlier lives are not its own."""

    async def __aenter__(self) -> Self:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._read = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "streams.cli.child",
                "worker",
                *self._options,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is the parent's to answer
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.shield(self.stop())

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not end it in time."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()

    def check(self) -> None:
        """Raise WorkerFailedError if it ended."""
        if self._process is not None and self._process.returncode is not None:
            code = self._process.returncode
            why = self.cause()
            raise WorkerFailedError(
                f"the worker ended with exit code {code}: {why}\nThe log of the worker: {self.log_path}"
                if why
                else f"the worker ended with exit code {code}. The end of {self.log_path}:\n{self.tail()}"
            )

    def cause(self) -> str:
        """What the worker gave as its reason to end: the last line of its log; nothing, if it was killed."""
        first, *rest = _chain(self.tail().rpartition("\n")[2]) or [""]
        return " <- ".join([first, *(text for text in rest if text not in first)])

    def retrying(self) -> str:
        """Why a sink made it wait since this was asked last, by the latest of its warnings; nothing, if none did."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(self._read)
                lines, whole, _ = log.read().rpartition(b"\n")
        except OSError:
            return ""
        self._read += len(lines) + len(whole)
        found = [line for line in lines.decode("utf-8", "replace").splitlines() if _RETRY.search(line)]
        return (_chain(found[-1]) or [""])[0] if found else ""

    def tail(self) -> str:
        """The last lines of its log."""
        try:
            lines = self.log_path.read_text("utf-8", "replace").splitlines()
            return "\n".join([line for line in lines if not line.startswith(_BANNER)][-_TAIL_LINES:])
        except OSError as exc:
            return f"(no log: {exc})"


def _chain(line: str) -> list[str]:
    """The errors that a line of a worker's log has, for people or as JSON, without the names of their classes."""
    try:
        if line.startswith("{"):
            chain = json.loads(line)["error_chain"]
        else:
            found = _CHAIN.search(line)
            chain = ast.literal_eval(found[1]) if found else []
        return [text.partition(": ")[2] or text for text in chain]
    except (KeyError, ValueError, SyntaxError):
        return []
