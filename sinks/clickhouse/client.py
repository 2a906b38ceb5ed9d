"""One way to talk to ClickHouse, whatever stands behind it: a server (`http`), or the engine within us (`embedded`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from millstream.errors import MillstreamError, RetryableSinkError, SinkError
from millstream.secrets import scrub

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
