"""One way to talk to ClickHouse, whatever stands behind it: a server over HTTP here, the embedded engine beside it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Mapping
from typing import Any, Protocol, TypeVar

import aiohttp
import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError, Error
from clickhouse_connect.driver.summary import QuerySummary

from millstream.errors import MillstreamError, RetryableSinkError, SinkError
from millstream.secrets import scrub
from sinks.clickhouse.config import SLOW_TIMEOUT_S, ClickHouseConfig

T = TypeVar("T")
Parameters = Mapping[str, str | int | list[str]]

INSERT_SETTINGS = {
    # An acknowledged insert is a written one.
    "async_insert": "0",
    "wait_end_of_query": "1",
    "insert_deduplicate": "1",
    # Or ReplacingMergeTree drops rows of the block at once, and the count of a range means nothing (design, hole g).
    "optimize_on_insert": "0",
    # One block per insert, so one part: all of the chunk or nothing. Above the 1,000,000 rows a chunk may have.
    "max_insert_block_size": "2000000",
    "min_insert_block_size_rows": "2000000",
    "min_insert_block_size_bytes": "0",
    "max_block_size": "2000000",
    "max_threads": "1",
    "max_insert_threads": "1",
}

RETRYABLE_CODES = {
    159: "TIMEOUT_EXCEEDED",
    202: "TOO_MANY_SIMULTANEOUS_QUERIES",
    203: "NO_FREE_CONNECTION",
    209: "SOCKET_TIMEOUT",
    210: "NETWORK_ERROR",
    241: "MEMORY_LIMIT_EXCEEDED",
    242: "TABLE_IS_READ_ONLY",
    252: "TOO_MANY_PARTS",
    279: "ALL_CONNECTION_TRIES_FAILED",
    285: "TOO_FEW_LIVE_REPLICAS",
    319: "UNKNOWN_STATUS_OF_INSERT",
    341: "UNFINISHED",
    394: "QUERY_WAS_CANCELLED",  # also by the KILL QUERY of a worker that has since been fenced
    439: "CANNOT_SCHEDULE_TASK",
    499: "S3_ERROR",
    745: "SERVER_OVERLOADED",
    999: "KEEPER_EXCEPTION",
}
"""Codes after which the same statement may succeed. Everything else stops the worker."""

_WHAT_TO_DO = {
    16: "compare the table with `millstream misc clickhouse-schema`",
    53: "compare the column types with `millstream misc clickhouse-schema`",
    60: "create the tables: `millstream misc clickhouse-schema` prints the DDL",
    81: "create the database, or correct ?database= in the URL",
    164: "the user may only read; use a user that may write",
    192: "check user and password in the URL",
    193: "check user and password in the URL",
    194: "check user and password in the URL",
    241: "lower MILLSTREAM_CHUNK_MAX_ROWS, or raise the user's max_memory_usage",
    242: "look why the server has the table read-only (its disk, its replicas)",
    243: "free space on the server's disk",
    252: "merges fall behind: raise MILLSTREAM_CHUNK_MAX_ROWS and MILLSTREAM_CHUNK_MAX_AGE, so that parts are fewer",
    497: "grant the user what the message names",
    516: "check user and password in the URL",
}
_CODE = re.compile(r"\bCode: (\d+)\b")
_EXCEPTION = re.compile(r"\bCode: \d+\. DB::\w*Exception: .*", re.DOTALL)
"""In an answer with status 200: the statement failed after the headers were out."""


class Client(Protocol):
    """What the sink needs of ClickHouse. All errors are SinkError or RetryableSinkError, passwords masked."""

    url: str
    """For messages, password masked."""
    concurrent: bool
    """Whether statements of others may run at the same time, so that KILL QUERY has something to end."""

    async def open(self) -> None:
        """Connect. Raises SinkError or RetryableSinkError."""

    async def rows(
        self, sql: str, parameters: Parameters | None = None, *, purpose: str, slow: bool = False
    ) -> list[list[Any]]:
        """The rows of a SELECT, as JSON values (64-bit integers may be texts). `slow`: it may take minutes."""

    async def run(self, sql: str, parameters: Parameters | None = None, *, purpose: str, slow: bool = False) -> None:
        """Run a statement without result. `slow`: it may take minutes."""

    async def insert(
        self, sql: str, body: bytes, parameters: Parameters, *, token: str, query_id: str, purpose: str
    ) -> int | None:
        """INSERT … SELECT … FROM input(…) FORMAT ArrowStream of `body` under a deduplication token.

        Returns how many rows passed the statement's condition (deduplicated ones too), None if it was not told.
        """

    async def close(self) -> None:
        """Release the connection."""


def make_client(config: ClickHouseConfig) -> Client:
    """The client that the URL's scheme asks for."""
    if config.embedded:
        from sinks.clickhouse.embedded import EmbeddedClient

        return EmbeddedClient(config)
    return HttpClient(config)


def failure(url: str, purpose: str, text: str, code: int | None, *, transient: bool = False) -> MillstreamError:
    """The error for a failed statement: what was attempted, where, ClickHouse's code and text, what to do."""
    text = scrub(" ".join(text.split()))[:1000]
    found = _CODE.search(text)
    code = code or (int(found[1]) if found else None)
    retry = code in RETRYABLE_CODES or (transient and code is None)
    name = f" code {code}" if code else ""
    what = _WHAT_TO_DO.get(code or 0, "")
    message = f"ClickHouse {url}: could not {purpose}:{name} {text}{f'. What to do: {what}' if what else ''}"
    return RetryableSinkError(message) if retry else SinkError(message)


class HttpClient:
    """A ClickHouse server over HTTP, by clickhouse-connect, with the driver's retries off: the wrapper owns those."""

    concurrent = True

    def __init__(self, config: ClickHouseConfig) -> None:
        self.url = config.url
        self._config = config
        self._client: Any = None

    async def open(self) -> None:
        """Connect and read the server's version and settings."""
        if self._client is not None:
            return
        config = self._config
        proxy: dict[str, Any] = {f"{config.scheme}_proxy": config.proxy_url} if config.proxy_url else {}
        connecting = clickhouse_connect.get_async_client(
            interface=config.scheme,
            host=config.host,
            port=config.port,
            username=config.username or None,
            password=config.password,
            compress=False,
            connect_timeout=config.send_timeout,
            send_receive_timeout=SLOW_TIMEOUT_S,
            query_retries=0,
            autogenerate_session_id=False,
            show_clickhouse_errors=True,
            **proxy,
        )
        self._client = await self._guard(connecting, "connect", config.send_timeout)

    async def rows(
        self, sql: str, parameters: Parameters | None = None, *, purpose: str, slow: bool = False
    ) -> list[list[Any]]:
        """See Client."""
        query = self._connected().raw_query(sql, parameters=dict(parameters or {}), fmt="JSONCompact")
        answer = await self._guard(query, purpose, SLOW_TIMEOUT_S if slow else self._config.send_timeout)
        try:
            data: list[list[Any]] = json.loads(answer)["data"]
        except (ValueError, KeyError, TypeError):
            text = bytes(answer).decode(errors="replace")
            self._refuse_exception(text, purpose)
            what = f"the answer is no result: {text[-200:]!r}"
            raise failure(self.url, purpose, what, None, transient=True) from None
        return data

    async def run(self, sql: str, parameters: Parameters | None = None, *, purpose: str, slow: bool = False) -> None:
        """See Client."""
        timeout = SLOW_TIMEOUT_S if slow else self._config.send_timeout
        command = self._connected().command(sql, parameters=dict(parameters or {}))
        self._refuse_exception(await self._guard(command, purpose, timeout), purpose)

    async def insert(
        self, sql: str, body: bytes, parameters: Parameters, *, token: str, query_id: str, purpose: str
    ) -> int | None:
        """See Client."""
        # Not `raw_insert`: that one sends the insert again by itself when the connection breaks, and a token that was
        # logged without its part is then acknowledged without a row (notes/sinks.md).
        settings = INSERT_SETTINGS | {"insert_deduplication_token": token, "query_id": query_id}
        command = self._connected().command(sql, parameters=dict(parameters), data=body, settings=settings)
        answer = await self._guard(command, purpose, self._config.send_timeout)
        if isinstance(answer, QuerySummary) and "written_rows" in answer.summary:
            return int(answer.written_rows)
        self._refuse_exception(answer, purpose)
        return None

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _refuse_exception(self, answer: object, purpose: str) -> None:
        """Raise if the answer, of status 200, ends in the text of an exception."""
        text = "\n".join(map(str, answer)) if isinstance(answer, list | tuple) else answer
        if isinstance(text, str) and (found := _EXCEPTION.search(text)):
            raise failure(self.url, purpose, found[0], None, transient=True)

    def _connected(self) -> Any:
        if self._client is None:
            raise SinkError(f"ClickHouse {self.url}: the sink is not open")
        return self._client

    async def _guard(self, call: Awaitable[T], purpose: str, timeout: float) -> T:  # noqa: ASYNC109
        # The error is raised outside of the except block: the driver's own, with what it knows of the URL, must not
        # hang in the chain (T42). Its text is in ours, scrubbed.
        try:
            async with asyncio.timeout(timeout):
                return await call
        except TimeoutError:
            text = f"no answer within {timeout:g} s, the outcome is unknown"
            error = failure(self.url, purpose, text, None, transient=True)
        except Error as e:
            code = e.code
            server_error = re.search(r"HTTP status (5\d\d|408|429)\b", str(e)) is not None
            network = type(e).__name__ == "OperationalError"
            error = failure(self.url, purpose, _chain(e), code, transient=server_error or network)
        except (ClickHouseError, aiohttp.ClientError, OSError, ValueError) as e:
            transient = isinstance(e, aiohttp.ClientError | OSError)
            error = failure(self.url, purpose, _chain(e), None, transient=transient)
        raise error


def _chain(error: BaseException) -> str:
    """The texts of an error and its causes in one line, each once."""
    texts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(texts) < 4:
        text = str(seen) or type(seen).__name__
        if not any(text in t for t in texts):
            texts.append(text)
        seen = seen.__cause__
    return " <- ".join(texts)
