"""The embedded Postgres: it starts, keeps its data, and ends with whoever started it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from millstream.errors import PostgresError
from millstream.postgres import EmbeddedPostgres, connect
from tests.support.waiting import until, wait_until


async def _ask(url: str, sql: str) -> object:
    async with connect(url) as connection:
        return await connection.fetchval(sql)


def test_what_was_committed_outlives_a_stop_and_a_kill(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "pg") as server:
        port = server.port
        asyncio.run(_ask(server.url, "CREATE TABLE t AS SELECT 1 AS n"))
        server.kill()
        assert server.pid is None
        server.start()
        asyncio.run(_ask(server.url, "INSERT INTO t VALUES (2)"))
        server.stop()
        server.start()
        assert server.port == port
        assert asyncio.run(_ask(server.url, "SELECT sum(n) FROM t")) == 3
        assert asyncio.run(_ask(server.url, "SHOW wal_level")) == "logical"
        assert asyncio.run(_ask(server.url, "SHOW timezone")) == "UTC"  # T24


def test_a_kill_takes_a_session_at_work_along(tmp_path: Path) -> None:
    async def at_work(server: EmbeddedPostgres) -> int:
        async with connect(server.url) as connection:
            pid: int = await connection.fetchval("SELECT pg_backend_pid()")
            working = asyncio.ensure_future(connection.execute("DO $$ BEGIN LOOP END LOOP; END $$"))
            await until(lambda: _state(pid) == "R", 30, "the session to be at work")
            await asyncio.to_thread(server.kill)
            with pytest.raises(asyncpg.PostgresConnectionError):
                await working
            return pid

    with EmbeddedPostgres(tmp_path / "pg") as server:
        pid = asyncio.run(at_work(server))
        assert _state(pid) in "XZ"


def _state(pid: int) -> str:
    """That of a process, a letter; X if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import sys; from millstream.postgres import EmbeddedPostgres; "
        f"s = EmbeddedPostgres({str(tmp_path / 'pg')!r}); s.start(); print('pid', s.pid, flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin
    assert child.stdout
    postmaster = next(int(line[4:]) for line in child.stdout if line.startswith(b"pid "))
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdin.close()
    child.stdout.close()
    wait_until(lambda: not Path(f"/proc/{postmaster}").exists(), 30, "the end of the postmaster")


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg", shared_buffers="nonsense")
    with pytest.raises(PostgresError, match=r"(?s)ended with exit code 1.*shared_buffers"):
        server.start()
    assert server.pid is None
