"""A ClickHouse server over HTTP, and which client a URL asks for."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable
from typing import Any, TypeVar

import aiohttp
import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError, Error
from clickhouse_connect.driver.summary import QuerySummary

from millstream.errors import SinkError
from sinks.clickhouse.client import INSERT_SETTINGS, Client, Parameters, failure
from sinks.clickhouse.config import SLOW_TIMEOUT_S, ClickHouseConfig

T = TypeVar("T")

_EXCEPTION = re.compile(r"\bCode: \d+\. DB::\w*Exception: .*", re.DOTALL)
"""In an answer with status 200: the statement failed after the headers were out."""


def make_client(config: ClickHouseConfig) -> Client:
    """The client that the URL's scheme asks for."""
    if config.embedded:
        from sinks.clickhouse.embedded import EmbeddedClient

        return EmbeddedClient(config)
    return HttpClient(config)


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
