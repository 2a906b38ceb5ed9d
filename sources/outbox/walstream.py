"""The streaming replication protocol over libpq: a slot's changes in, how far we are out.

asyncpg does not speak it. psycopg brings libpq (TLS, passwords, service files) and lets START_REPLICATION through; what
comes after that is CopyData in both directions, which is read and written here.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

import psycopg
from psycopg import sql

from millstream.errors import PostgresError, PostgresUnavailableError
from millstream.secrets import mask_url
from sources.outbox.pgoutput import Begin, Commit, Decoder, Insert

READ_BYTES = 8 << 20
"""Of one read, about."""
BEATS = 4
"""Words to the server within the time that it lets us be silent."""
CONNECT_SECONDS = 10
_EPOCH = 946_684_800
"""2000-01-01, from which Postgres counts."""


class SlotBusyError(PostgresUnavailableError):
    """Another relay reads from the slot."""


class Server(NamedTuple):
    """Which server an LSN is one of."""

    system: str
    timeline: int


@contextmanager
def _naming(what: str, url: str) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.ObjectInUse as e:
        raise SlotBusyError(f"{what}: {_one_line(e)}") from e
    except (psycopg.errors.ConnectionException, psycopg.errors.OperatorIntervention) as e:
        raise PostgresUnavailableError(f"{what}, {mask_url(url)}: {_one_line(e)}") from e
    except psycopg.OperationalError as e:
        kind = PostgresUnavailableError if e.sqlstate is None else PostgresError
        raise kind(f"{what}, {mask_url(url)}: {_one_line(e)}") from e
    except psycopg.Error as e:
        raise PostgresError(f"{what}, {mask_url(url)}: {_one_line(e)}") from e


def _one_line(e: Exception) -> str:
    return f"{type(e).__name__}: {' '.join(str(e).split())}"


class WalStream:
    """An open stream. `read` gives what has come, `confirm` says what need not come again."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[object, ...]], url: str) -> None:
        self._connection, self._pg, self._url = connection, connection.pgconn, url
        self._decode = Decoder()
        self._confirmed = 0
        self.server = Server("", 0)
        self.idle_lsn = 0
        """Up to here the server has looked, and sent everything that there was."""

    async def read(self, timeout: float) -> list[Begin | Insert | Commit]:  # noqa: ASYNC109
        """What has come, after at most `timeout` seconds; maybe nothing. Raises PostgresUnavailableError."""
        with _naming("read the WAL", self._url):
            messages = self._take()
            if not messages and await self._wait(timeout):
                self._pg.consume_input()
                messages = self._take()
            return messages

    async def _wait(self, timeout: float) -> bool:  # noqa: ASYNC109
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._pg.socket, readable.set)  # only while we wait: it is called as long as there is something
        try:
            await asyncio.wait_for(readable.wait(), timeout)
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._pg.socket)
        return True

    def confirm(self, lsn: int) -> None:
        """Everything before `lsn` is done; the server may forget it. Raises PostgresUnavailableError."""
        self._confirmed = max(self._confirmed, lsn)
        self._tell()

    def ask(self) -> None:
        """Say that we are here, and ask how far the server is: `idle_lsn`. Raises PostgresUnavailableError."""
        self._tell(ask=True)

    async def beat(self, every: float) -> None:
        """Tell the server that we are here, whatever else we do meanwhile. Until the stream ends."""
        while True:
            await asyncio.sleep(every)
            self._tell()

    def _tell(self, *, ask: bool = False) -> None:
        now = int((time.time() - _EPOCH) * 1e6)
        with _naming("confirm the position", self._url):
            self._pg.put_copy_data(struct.pack("!cqqqqB", b"r", *[self._confirmed] * 3, now, ask))
            self._pg.flush()

    def _take(self) -> list[Begin | Insert | Commit]:
        found: list[Begin | Insert | Commit] = []
        size = 0
        while size < READ_BYTES:
            length, data = self._pg.get_copy_data(1)
            if length == 0:
                break
            if length < 0:
                raise psycopg.errors.ConnectionException(_ending(self._pg))
            size += length
            self._message(bytes(data), found)
        return found

    def _message(self, data: bytes, found: list[Begin | Insert | Commit]) -> None:
        if data[:1] == b"w":
            message = self._decode(data[25:])
            if message is not None:
                found.append(message)
        elif data[:1] == b"k":
            (self.idle_lsn,) = struct.unpack_from("!q", data, 1)
            if data[17]:
                self._tell()


def _ending(pg: psycopg.pq.abc.PGconn) -> str:
    result = pg.get_result()
    said = result.error_message if result is not None else pg.error_message
    return said.decode("utf-8", "replace").strip() or "the server ended the stream"


@asynccontextmanager
async def open_stream(url: str, slot: str, publication: str, silence: float) -> AsyncIterator[WalStream]:
    """Stream from where the slot was confirmed. Raises SlotBusyError, PostgresUnavailableError, PostgresError.

    After `silence` seconds without a word from us the server gives the slot to whoever asks: we were paused, or our
    host is gone. That time is ours, whatever the server's `wal_sender_timeout` says (0 there: it would never do so).
    """
    with _naming(f"read from replication slot {slot!r}", url):
        connection = await psycopg.AsyncConnection.connect(
            url, autocommit=True, replication="database", application_name="millstream-outbox",
            connect_timeout=CONNECT_SECONDS,
        )  # fmt: skip
    stream = WalStream(connection, url)
    beating: asyncio.Task[None] | None = None
    try:
        with _naming(f"read from replication slot {slot!r}", url):
            row = await (await connection.execute("IDENTIFY_SYSTEM")).fetchone()
            assert row is not None
            stream.server = Server(str(row[0]), int(str(row[1])))
            await connection.execute(sql.SQL("SET wal_sender_timeout = {}").format(sql.Literal(int(silence * 1000))))
            await connection.execute(
                sql.SQL(
                    "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {}, binary 'true')"
                ).format(sql.Identifier(slot), sql.Literal(publication))
            )
        connection.pgconn.nonblocking = 1
        beating = asyncio.create_task(stream.beat(silence / BEATS))
        yield stream
    finally:
        if beating is not None:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)  # what broke it, `read` says too
        connection.pgconn.finish()  # at once: an orderly close would first read all that the server has to say
