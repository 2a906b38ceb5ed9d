"""The embedded Postgres: it starts, keeps its data, and ends with whoever started it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from millstream.errors import PostgresError
from millstream.postgres import EmbeddedPostgres, connect
from tests.support.waiting import wait_until


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
