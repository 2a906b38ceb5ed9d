"""The Postgres sink: one transaction per chunk holds its rows and its receipt."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol, runtime_checkable

import asyncpg

from millstream.errors import PostgresError, PostgresUnavailableError, RetryableSinkError, SinkError
from millstream.failpoints import declare, failpoint
from millstream.postgres import Connection, Pool, create_pool, naming
from schemas.chunk import Chunk, Receipt
from schemas.postgres import require_migrated
from sinks.postgres import position
from sinks.postgres.config import PostgresConfig

BEGUN = declare("postgres.begun", "the transaction holds the partition, nothing is written")
APPLIED = declare("postgres.applied", "rows are written, the receipt is not")
RECORDED = declare("postgres.recorded", "rows and receipt are written, the transaction is open")
COMMITTED = declare("postgres.committed", "the transaction is committed, nobody knows")


class Apply(Protocol):
    """What is done with a chunk's rows inside the transaction."""

    async def check(self, connection: Connection) -> None:
        """Look for what must be there, at the worker's start. Raises ConfigError, SinkError."""

    async def __call__(self, connection: Connection, chunk: Chunk) -> dict[str, str]:
        """Write the rows, set-based: statements per chunk, not per row. Returns details for the receipt."""


@runtime_checkable
class RecordsFailure(Protocol):
    """An `Apply` that puts down why a chunk could not be written, after the rollback."""

    async def failed(self, connection: Connection, chunk: Chunk, error: Exception) -> None:
        """Called in no transaction, before the error is passed on."""


class PostgresStream:
    """A sink that gives each chunk to `apply`, in the transaction that also moves the partition's position."""

    def __init__(self, config: PostgresConfig, apply: Apply, name: str = "postgres") -> None:
        """`name` tells sinks of one application apart; it is part of what the positions are kept under."""
        self.config, self.name = config, name
        self._apply, self._key = apply, f"{config.group}/{name}"
        self._pool: Pool | None = None

    async def open(self) -> None:
        """Connect; check migrations and tables. Raises ConfigError, SinkError, RetryableSinkError."""
        with _as_sink_error():
            if self._pool is None:
                self._pool = await create_pool(self.config.url, self.config.pool_size)
        async with self._connection("check the tables") as connection:
            await require_migrated(connection)
            await self._apply.check(connection)

    async def close(self) -> None:
        """Close the connections; what is under way is rolled back."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    async def have(self, chunk: Chunk) -> Receipt | None:
        """The receipt if the chunk was committed here. Raises IdentityMismatchError."""
        async with self._connection(_told("look for", chunk)) as connection:
            return await position.have(connection, self._key, self.name, chunk)

    async def write_chunk(self, chunk: Chunk) -> Receipt:
        """Rows and receipt in one transaction, unless another worker has done it."""
        async with self._connection(_told("write", chunk)) as connection:
            try:
                return await self._write(connection, chunk)
            except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, SinkError) as error:
                if isinstance(self._apply, RecordsFailure):
                    await self._apply.failed(connection, chunk, error)
                raise

    async def _write(self, connection: Connection, chunk: Chunk) -> Receipt:
        async with connection.transaction():
            found = await position.lock(connection, self._key, self.name, chunk)
            if found is not None:
                return found
            failpoint(BEGUN)
            details = await self._apply(connection, chunk)
            failpoint(APPLIED)
            receipt = Receipt(self.name, chunk.rows, details=details)
            await position.advance(connection, self._key, chunk, receipt)
            failpoint(RECORDED)
        failpoint(COMMITTED)
        return receipt

    @asynccontextmanager
    async def _connection(self, what: str) -> AsyncIterator[Connection]:
        assert self._pool is not None, "open() comes first"
        with _as_sink_error(), naming(what, self.config.url):
            async with self._pool.acquire() as connection:
                yield connection  # type: ignore[misc]  # a proxy with all of its methods


class _as_sink_error:
    """Errors of Postgres as a sink has to say them."""

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _tb: object) -> None:
        if isinstance(error, PostgresUnavailableError):
            raise RetryableSinkError(str(error)) from error
        if isinstance(error, PostgresError):
            raise SinkError(f"{error}. The chunk was not written") from error


def _told(verb: str, chunk: Chunk) -> str:
    at = chunk.id
    return f"{verb} topic {at.topic}, partition {at.partition}, offsets {at.first}..{at.last}"
