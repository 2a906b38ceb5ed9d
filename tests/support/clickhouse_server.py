"""A small ClickHouse-HTTP server of ours over chdb, with faults on demand: `python -m tests.support.clickhouse_server`.

It is the engine of ClickHouse behind as much of its HTTP interface as clickhouse-connect and our sink need, so that
several workers can share one database in tests. It is *not* a ClickHouse server: statements run one after the other,
and what a real server does at a crash or under load is only imitated:

| fault | what happens to a statement that contains `match` |
|---|---|
| `error` | answered with `status` and `code`, not run |
| `error_after` | run, then answered with `status` and `code` |
| `drop_before`, `drop_after` | the connection is cut before, or after, it ran |
| `reset_upload` | the connection is reset while the body is on its way |
| `half_header` | it runs, and the connection is cut in the middle of the answer's headers |
| `half_body` | it runs, and the connection is cut in the middle of the answer's body |
| `exception_200`, `exception_200_after` | answered with 200 and the exception `code` as body, not run, or run |
| `die_before`, `die_after` | the server is killed before, or after, it ran |
| `die_at_rename` | the server is killed at the rename that makes the part visible: its token is logged by then |
| `quiet` | it runs, and the answer does not tell how many rows were written |
| `hang` | held back as if still on its way; runs after `release`, whether or not the client is there |
| `hang_running` | held as a running query: KILL QUERY ends it, `release` lets it run |
| `swallow` | its deduplication token is spent, its rows are gone, the connection is cut (token logged, part lost) |
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
from aiohttp import web
from chdb.session import Session

from sinks.clickhouse.embedded import insert_from_body
from tests.support import dying

INSERT = "FORMAT ArrowStream"
"""In every statement that inserts a chunk, and in no other."""

_TRANSPORT = {
    "query", "database", "client_protocol_version", "query_id", "session_id", "compress", "decompress", "buffer_size",
    "enable_http_compression", "wait_end_of_query", "default_format", "role", "http_headers_progress_interval_ms",
    "send_progress_in_http_headers", "user", "password", "quota_key", "session_timeout", "session_check",
}  # fmt: skip
_OUTPUT = re.compile(r"\sFORMAT\s+(\w+)\s*;?\s*\Z", re.IGNORECASE)
_READS = re.compile(r"\s*(SELECT|WITH|SHOW|DESCRIBE)\b", re.IGNORECASE)


@dataclass
class Fault:
    """Hits the next `count` statements that contain `match`."""

    mode: str
    count: int = 1
    match: str = INSERT
    code: int = 0
    status: int = 500


@dataclass
class Server:
    """The handlers and what they share."""

    session: Any
    credentials: str = ""
    faults: list[Fault] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    hanging: dict[str, tuple[asyncio.Event, bool]] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)
    engine: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def app(self) -> web.Application:
        """The application."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/ping", self.ping)
        app.router.add_post("/__fault", self.fault)
        app.router.add_post("/__release", self.release)
        app.router.add_get("/__statements", self.seen)
        app.router.add_route("*", "/{tail:.*}", self.statement)
        return app

    async def ping(self, _: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    async def fault(self, request: web.Request) -> web.Response:
        """Arm a fault; mode `none` disarms all."""
        q = request.query
        if q["mode"] == "none":
            self.faults.clear()
        else:
            numbers = {k: int(q[k]) for k in ("count", "code", "status") if k in q}
            self.faults.append(Fault(q["mode"], match=q.get("match", INSERT), **numbers))
        return web.Response(text="ok")

    async def release(self, _: web.Request) -> web.Response:
        """Let go of what hangs; answers how many there were."""
        for event, _running in self.hanging.values():
            event.set()
        return web.Response(text=str(len(self.hanging)))

    async def seen(self, request: web.Request) -> web.Response:
        """The statements that came in since the last look, and how many hang."""
        seen = list(self.statements)
        if "clear" in request.query:
            self.statements.clear()
        return web.json_response({"statements": seen, "hanging": len(self.hanging)})

    async def statement(self, request: web.Request) -> web.Response:
        """Run a statement of the HTTP interface."""
        if self.credentials and not self._authorized(request):
            return _error("Code: 516. DB::Exception: Authentication failed (AUTHENTICATION_FAILED)", 516, 403)
        params = dict(request.query)
        sql = params.get("query", "")
        fault = self._hit(sql)
        if fault and fault.mode == "reset_upload":
            await request.content.readexactly(64 * 1024)
            self.statements.append(sql)
            return self._cut(request)
        body = await request.read()
        if not sql:
            sql, body = body.decode(), b""
            fault = self._hit(sql)
        self.statements.append(sql)
        query_id = params.get("query_id", "")
        mode = fault.mode if fault else ""
        if mode == "die_before":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "die_at_rename":
            await asyncio.get_running_loop().run_in_executor(self.engine, dying.at_next_rename)
        if fault and mode == "error":
            return _error(_injected(fault.code), fault.code, fault.status)
        if mode == "drop_before":
            return self._cut(request)
        if fault and mode == "exception_200":
            return web.Response(text=_injected(fault.code))
        if mode.startswith("hang"):
            event = asyncio.Event()
            self.hanging[query_id] = (event, mode == "hang_running")
            await event.wait()
            del self.hanging[query_id]
            if query_id in self.killed:
                return _error("Code: 394. DB::Exception: Query was cancelled (QUERY_WAS_CANCELLED)", 394, 500)
        if sql.startswith("KILL QUERY"):
            self._kill(params)
        loop = asyncio.get_running_loop()
        try:
            output, summary, form = await loop.run_in_executor(
                self.engine, self._run, sql, body, params, request.headers.get("X-ClickHouse-Format")
            )
            if mode == "swallow":
                await loop.run_in_executor(self.engine, self._lose, sql, body)
        except RuntimeError as e:
            found = re.search(r"Code: (\d+)", str(e))
            return _error(str(e), int(found[1]) if found else 1, 500)
        if mode in ("drop_after", "swallow"):
            return self._cut(request)
        if fault and mode == "error_after":
            return _error(_injected(fault.code), fault.code, fault.status)
        if fault and mode == "exception_200_after":
            return web.Response(body=output + _injected(fault.code).encode())
        if mode == "die_after":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode in ("half_header", "half_body"):
            return self._half(request, output if mode == "half_body" else b"", query_id)
        headers = {"X-ClickHouse-Query-Id": query_id}
        if mode != "quiet":
            headers["X-ClickHouse-Summary"] = json.dumps(summary)
        if form:
            headers["X-ClickHouse-Format"] = form
        return web.Response(body=output, headers=headers)

    def _authorized(self, request: web.Request) -> bool:
        expected = base64.b64encode(self.credentials.encode()).decode()
        return request.headers.get("Authorization") == f"Basic {expected}"

    def _hit(self, sql: str) -> Fault | None:
        for fault in self.faults:
            if fault.count > 0 and fault.match in sql:
                fault.count -= 1
                return fault
        return None

    def _cut(self, request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    def _half(self, request: web.Request, output: bytes, query_id: str) -> web.Response:
        head = f"HTTP/1.1 200 OK\r\nX-ClickHouse-Query-Id: {query_id}\r\nContent-Length: {len(output)}\r\n"
        if request.transport is not None:
            request.transport.write(head.encode() + (b"\r\n" + output[: len(output) // 2] if output else b""))
            request.transport.close()
        return web.Response()

    def _kill(self, params: dict[str, str]) -> None:
        prefix, suffix = params["param_prefix"], params["param_suffix"]
        for query_id, (event, running) in self.hanging.items():
            if running and query_id.startswith(prefix) and query_id.endswith(suffix):
                self.killed.add(query_id)
                event.set()

    def _run(
        self, sql: str, body: bytes, params: dict[str, str], default_format: str | None
    ) -> tuple[bytes, dict[str, str], str | None]:
        settings = {k: v for k, v in params.items() if k not in _TRANSPORT and not k.startswith("param_")}
        bound = {k.removeprefix("param_"): v for k, v in params.items() if k.startswith("param_")}
        if INSERT in sql:
            written = insert_from_body(self.session, sql, body, bound, settings)
            return b"", {"written_rows": str(written), "read_rows": str(written)}, None
        found = _OUTPUT.search(sql)
        form = found[1] if found else default_format or "TabSeparated"
        sql = sql[: found.start()] if found else sql
        if settings and _READS.match(sql):
            sql += " SETTINGS " + ", ".join(f"{k} = '{v}'" for k, v in settings.items())
        result = self.session.query(sql, form, params=bound or None)
        return result.bytes(), {"written_rows": str(result.rows_written())}, form if _READS.match(sql) else None

    def _lose(self, sql: str, body: bytes) -> None:
        rows = pa.ipc.open_stream(body).read_all()
        offsets = rows.column("_offset").to_pylist()
        table = re.search(r"INSERT INTO (\S+)", sql)
        assert table
        self.session.query(
            f"DELETE FROM {table[1]} WHERE _topic = {{topic:String}} AND _partition = {rows.column('_partition')[0]}"
            f" AND _offset BETWEEN {min(offsets)} AND {max(offsets)}",
            params={"topic": rows.column("_topic")[0].as_py()},
        )


def _injected(code: int) -> str:
    return f"Code: {code}. DB::Exception: injected" if code else "injected"


def _error(text: str, code: int, status: int) -> web.Response:
    headers = {"X-ClickHouse-Exception-Code": str(code)} if code else {}
    return web.Response(status=status, text=text, headers=headers)


class ClickHouseServer:
    """Starts the server as a process of its own, for a test; it ends with the test's process, however that ends.

    `stop` is a kill -9; the same `path` and `port` bring the server back with its data.
    """

    def __init__(self, path: Path, credentials: str = "", port: int = 0) -> None:
        command = [sys.executable, "-m", __name__, "--path", str(path), "--port", str(port), "--with-parent"]
        command += ["--credentials", credentials] if credentials else []
        self._process = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line.startswith("ready "), f"the ClickHouse test server did not start: {line!r}"
        self.port, self._credentials = int(line.split()[1]), credentials

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def url(self, database: str) -> str:
        """The URL for the sink."""
        user = f"{self._credentials}@" if self._credentials else ""
        return f"http://{user}127.0.0.1:{self.port}?database={database}"

    def fault(self, mode: str, **arguments: str | int) -> None:
        """Arm a fault; see the module."""
        self._ask("__fault", {"mode": mode, **arguments}, b"")

    def release(self) -> None:
        """Let everything go that hangs."""
        self._ask("__release", {}, b"")

    def statements(self, *, clear: bool = False) -> list[str]:
        """Statements that came in since they were last cleared."""
        seen: list[str] = json.loads(self._ask("__statements", {"clear": 1} if clear else {}))["statements"]
        return seen

    def hanging(self) -> int:
        """How many statements hang."""
        return int(json.loads(self._ask("__statements", {}))["hanging"])

    def _ask(self, path: str, arguments: dict[str, str | int], data: bytes | None = None) -> str:
        url = f"http://127.0.0.1:{self.port}/{path}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=10) as answer:
            return str(answer.read().decode())


async def _serve(path: Path, port: int, credentials: str) -> None:
    server = Server(Session(str(path)), credentials)  # type: ignore[no-untyped-call]
    runner = web.AppRunner(server.app(), shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print(f"ready {runner.addresses[0][1]}", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
        server.session.close()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    """Serve until killed. Prints `ready <port>` when it listens."""
    parser = argparse.ArgumentParser(description="ClickHouse-HTTP over chdb, for tests")
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True, help="0: a free one")
    parser.add_argument("--credentials", default="", help="user:password that requests must carry")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input is closed")
    arguments = parser.parse_args()
    arguments.path.mkdir(parents=True, exist_ok=True)
    if arguments.with_parent:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(_serve(arguments.path, arguments.port, arguments.credentials))


if __name__ == "__main__":
    main()
