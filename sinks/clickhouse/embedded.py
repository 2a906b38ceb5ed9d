"""The embedded engine (chdb): for a first run and for tests. One process at a time, one directory per process."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from clickhouse_connect.driver.binding import bind_query

from millstream.errors import ConfigError, MillstreamError, SinkError
from sinks.clickhouse.client import INSERT_SETTINGS, Parameters, failure
from sinks.clickhouse.config import ClickHouseConfig

T = TypeVar("T")

_ONE_PROCESS = "embedded chdb is for one process; for several workers run a server and use an http(s):// URL"
_TRANSPORT = {"wait_end_of_query"}
_INPUT = re.compile(r"\binput\((?=')")
_FORMAT = re.compile(r"\s+FORMAT\s+ArrowStream\s*\Z")


class _Engine:
    """The process's engine: opened by its first user, closed by its last. All calls run in its one thread."""

    def __init__(self, path: Path) -> None:
        self.path, self.users, self.pid = path, 0, os.getpid()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="chdb")
        self.session: Any = None

    def start(self) -> None:
        """Open the directory. Raises SinkError. Runs in the engine's thread."""
        self.path.mkdir(parents=True, exist_ok=True)
        if _locked(self.path / "status"):
            raise SinkError(f"chdb {self.path} is in use by another process: {_ONE_PROCESS}")
        try:
            from chdb.session import Session
        except ModuleNotFoundError as e:  # the image goes without
            raise SinkError(
                f"chdb {self.path}: ClickHouse's engine is not installed here: pip install 'chdb>=4.4', or give the "
                "URL of a server, http://user:password@host:8123?database=d"
            ) from e

        self.session = Session(str(self.path))  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Close the directory. Runs in the engine's thread."""
        if self.session is not None:
            self.session.close()
            self.session = None


_engine: _Engine | None = None
_opening = threading.Lock()


def _locked(status: Path) -> bool:
    """Whether a living process holds the lock that ClickHouse takes on its `status` file."""
    if not status.exists():
        return False
    with status.open("rb") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _acquire(path: Path) -> _Engine:
    global _engine  # noqa: PLW0603
    path = path.resolve()
    with _opening:
        if _engine is not None and _engine.path != path:
            raise ConfigError(f"chdb {path}: this process already has {_engine.path} open, and can have only one")
        if _engine is None:
            engine = _Engine(path)
            try:
                engine.thread.submit(engine.start).result()
            except BaseException:
                engine.thread.shutdown(wait=True)
                raise
            _engine = engine
        _engine.users += 1
        return _engine


def _release(engine: _Engine) -> None:
    global _engine  # noqa: PLW0603
    with _opening:
        engine.users -= 1
        if engine.users == 0:
            engine.thread.submit(engine.stop).result()
            engine.thread.shutdown(wait=True)
            _engine = None


class EmbeddedClient:
    """See Client. Statements run one after the other, so a statement that follows another one sees its whole effect."""

    concurrent = False

    def __init__(self, config: ClickHouseConfig) -> None:
        if config.path is None:
            raise ConfigError(f"{config.url} is no chdb URL")
        self.url = config.url
        self._path = config.path
        self._engine: _Engine | None = None

    async def open(self) -> None:
        """Open the directory, or share the one this process has open. Raises SinkError if another process has it."""
        if self._engine is None:
            self._engine = await self._guard(asyncio.to_thread(_acquire, self._path), "open the directory")

    async def rows(
        self, sql: str, parameters: Parameters | None = None, *, purpose: str, slow: bool = False
    ) -> list[list[Any]]:
        """See Client."""
        del slow  # nothing here is cut off by time: the engine is part of the process
        answer = await self._call(lambda session: _query(session, sql, parameters, "JSONCompact").bytes(), purpose)
        data: list[list[Any]] = json.loads(answer)["data"]
        return data

    async def run(self, sql: str, parameters: Parameters | None = None, *, purpose: str, slow: bool = False) -> None:
        """See Client."""
        del slow
        await self._call(lambda session: _query(session, sql, parameters, "TabSeparated"), purpose)

    async def insert(
        self, sql: str, body: bytes, parameters: Parameters, *, token: str, query_id: str, purpose: str
    ) -> int | None:
        """See Client. Nothing can cut it off, so there is no query to end by its id."""
        del query_id
        settings = {k: v for k, v in INSERT_SETTINGS.items() if k not in _TRANSPORT}
        settings["insert_deduplication_token"] = token

        def insert(session: Any) -> int:
            bound, values = bind_query(sql, dict(parameters))
            return insert_from_body(session, str(bound), body, values, settings)

        return await self._call(insert, purpose)

    async def close(self) -> None:
        """Give the engine back; the last user closes the directory for other processes."""
        engine, self._engine = self._engine, None
        if engine is not None and engine.pid == os.getpid():
            await asyncio.to_thread(_release, engine)

    async def _call(self, call: Callable[[Any], T], purpose: str) -> T:
        engine = self._engine
        if engine is None:
            raise SinkError(f"ClickHouse {self.url}: the sink is not open")
        if engine.pid != os.getpid():
            # The engine's threads do not exist in a forked child: a query would hang there for ever.
            raise SinkError(f"ClickHouse {self.url}: opened before a fork: {_ONE_PROCESS}")
        future = asyncio.wrap_future(engine.thread.submit(lambda: call(engine.session)))
        result: T = await self._guard(future, purpose)
        return result

    async def _guard(self, call: Any, purpose: str) -> Any:
        try:
            return await call
        except MillstreamError as e:
            error = e
        except OSError as e:
            error = SinkError(f"ClickHouse {self.url}: could not {purpose}: {e}")
        except RuntimeError as e:
            text = f"{e} ({_ONE_PROCESS})" if "EmbeddedServer" in str(e) else str(e)
            error = failure(self.url, purpose, text, None)
        raise error


def _query(session: Any, sql: str, parameters: Parameters | None, output: str) -> Any:
    bound, values = bind_query(sql, dict(parameters or {}))
    return session.query(bound, output, params=_bare(values))


def _bare(values: Mapping[str, str]) -> dict[str, str] | None:
    """Bound parameters as chdb takes them; the HTTP interface writes `param_` before each name."""
    return {name.removeprefix("param_"): value for name, value in values.items()} or None


def insert_from_body(session: Any, sql: str, body: bytes, bound: Mapping[str, str], settings: Mapping[str, str]) -> int:
    """Run the sink's insert statement in a chdb session, with parameters as they stand in a ClickHouse URL.

    chdb takes no body for INSERT … SELECT, so the rows come from a file in memory. Returns how many passed the
    statement's condition.
    """
    fd = os.memfd_create("millstream-insert")
    try:
        with os.fdopen(os.dup(fd), "wb") as f:
            f.write(body)
        sql = _FORMAT.sub("", _INPUT.sub(f"file('/proc/self/fd/{fd}', ArrowStream, ", sql))
        given = ", ".join(f"{name} = '{value}'" for name, value in settings.items())
        sql = sql.replace("\nSELECT ", f"\nSETTINGS {given}\nSELECT ", 1)
        return int(session.query(sql, "TabSeparated", params=_bare(bound)).rows_written())
    finally:
        os.close(fd)
