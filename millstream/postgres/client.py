"""A pool of connections to Postgres, and which of its errors may pass by themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import asyncpg

from millstream.errors import PostgresError, PostgresUnavailableError
from millstream.secrets import mask_url

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:
    Connection, Pool = asyncpg.Connection, asyncpg.Pool

CONNECT_TIMEOUT = 10.0
"""Seconds to connect."""
CONNECTING = "cannot connect to Postgres (does it run there, is MILLSTREAM_POSTGRES_URL right?)"
COMMAND_TIMEOUT = 60.0
"""Seconds one statement may take."""
IDLE_IN_TRANSACTION = 60_000
"""Milliseconds: a paused worker must not hold row locks for ever (hole n)."""

_TRANSIENT = (
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.OperatorInterventionError,  # shutdown, crash of another session, cancelled by hand
    asyncpg.exceptions.InsufficientResourcesError,  # disk full, too many connections, out of memory
    asyncpg.exceptions.TransactionRollbackError,  # deadlock, serialisation
    asyncpg.exceptions.LockNotAvailableError,
    asyncpg.exceptions.CannotConnectNowError,
    asyncpg.exceptions.IdleInTransactionSessionTimeoutError,
    asyncpg.exceptions.ReadOnlySQLTransactionError,  # a standby, until it is promoted
    asyncpg.exceptions.PostgresSystemError,
)


@contextmanager
def naming(what: str, url: str) -> Iterator[None]:
    """Errors of Postgres as ours, with what was done and where. Raises PostgresUnavailableError, PostgresError."""
    try:
        yield
    except _TRANSIENT as e:
        raise PostgresUnavailableError(f"{what}, {mask_url(url)}: {_text(e)}") from e
    except asyncpg.PostgresError as e:
        raise PostgresError(f"{what}, {mask_url(url)}: {_text(e)}") from e
    except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError) as e:
        # The last two: the connection was closed under the call, or broke in the middle of the one before.
        raise PostgresUnavailableError(f"{what}, {mask_url(url)}: {_text(e)}") from e


def _text(e: BaseException) -> str:
    parts = [f"{type(e).__name__}: {e}" if str(e) else type(e).__name__]
    parts += [
        f"{label} {value}"
        for label in ("table", "column", "constraint")
        if (value := getattr(e, f"{label}_name", None))
    ]
    parts += [str(value) for label in ("detail", "hint") if (value := getattr(e, label, None))]
    return "; ".join(parts)


async def create_pool(url: str, size: int, application_name: str = "millstream") -> Pool:
    """A pool of up to `size` connections, made as they are needed."""
    with naming(CONNECTING, url):
        return await asyncpg.create_pool(
            url,
            min_size=0,
            max_size=size,
            timeout=CONNECT_TIMEOUT,
            command_timeout=COMMAND_TIMEOUT,
            server_settings={
                "application_name": application_name,
                "timezone": "UTC",
                "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION),
            },
        )


@asynccontextmanager
async def connect(url: str, application_name: str = "millstream") -> AsyncIterator[Connection]:
    """One connection, closed at the end. Errors inside are named only where the caller uses `naming`."""
    with naming(CONNECTING, url):
        connection = await asyncpg.connect(
            url,
            timeout=CONNECT_TIMEOUT,
            command_timeout=COMMAND_TIMEOUT,
            server_settings={"application_name": application_name, "timezone": "UTC"},
        )
    try:
        yield connection
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT)
