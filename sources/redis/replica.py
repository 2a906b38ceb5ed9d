"""A dump the way a replica gets it: PSYNC, and what the master sends then."""

from __future__ import annotations

import asyncio
import time
from typing import Self

import tenacity

from millstream.logs import error_chain, get_logger
from sources.redis.connection import Connection, Refused
from sources.redis.endpoint import RedisEndpoint
from sources.redis.errors import RedisAwayError, RedisBusyError, RedisSourceError, TransferDroppedError
from sources.redis.transfer import NotATransferError, Transfer

AWAY_RETRIES = 3
WAIT_FIRST, WAIT_LONGEST = 0.5, 5.0
"""Between two handshakes, in seconds."""
ACK_SECONDS = 1.0
READ_BYTES = 256 * 1024
_GATHER_BYTES = 64 * 1024
"""A read waits for so many, so that the parser is not fed in crumbs."""

log = get_logger(__name__)


class Replica:
    """A dump under way."""

    def __init__(self, connection: Connection, silence: float) -> None:
        self._connection, self._silence = connection, silence
        self._transfer = Transfer()
        self._held = bytearray()
        self._acks: asyncio.Task[None] | None = None

    @property
    def received(self) -> int:
        """Bytes of the dump so far."""
        return self._transfer.received

    @classmethod
    async def begin(cls, endpoint: RedisEndpoint, silence: float) -> Self:
        """Connect, shake hands, and wait until the master begins to send. Raises RedisSourceError, ConfigError.

        `silence`: seconds without a byte, keep-alives included, until the master counts as gone.
        """
        connection = await Connection.open(endpoint)
        replica = cls(connection, silence)
        try:
            await replica._shake_hands()
        except BaseException:
            await replica.close()
            raise
        return replica

    async def _shake_hands(self) -> None:
        connection = self._connection
        await connection.log_in()
        # No listening-port: nothing listens here, and Sentinel or a client that looks for replicas shall see as much.
        await self._announce("capa", "eof", "capa", "psync2")
        # A master that knows it keeps no stream of commands for us, which could overflow its buffer, and closes the
        # connection behind the dump. From then on anything we send would make its kernel throw away what is under way.
        leaves = await self._announce("rdb-only", "1")
        try:
            connection.send("PSYNC", "?", "-1")
            said = await connection.reply("PSYNC", self._silence)
            if not said.startswith("FULLRESYNC"):
                raise RedisSourceError(f"{connection.endpoint.address} answered PSYNC with {said!r}")
        except Refused as exc:
            raise connection.explain("PSYNC", str(exc)) from None
        if not leaves:
            self._acks = asyncio.create_task(self._acknowledge())
        try:
            while not self._transfer.started:
                self._held += self._transfer.feed(await self._receive())
        except NotATransferError as exc:
            said = str(exc)
            raise (
                connection.explain("PSYNC", said[1:])
                if said.startswith("-")
                else _no_transfer(connection.endpoint, said)
            ) from None
        except TransferDroppedError as exc:  # nothing of the dump has been seen: as good as at PSYNC itself
            raise RedisAwayError(str(exc)) from exc

    async def _announce(self, *words: str) -> bool:
        """Whether the server knows the option; older ones go on without it."""
        try:
            await self._connection.command("REPLCONF", *words)
        except Refused as exc:
            if "unrecognized" not in str(exc).lower():
                raise self._connection.explain("REPLCONF", str(exc)) from None
            return False
        return True

    async def _acknowledge(self) -> None:
        """A master ends replicas that say nothing for repl-timeout. Zero, so that no WAIT counts this one."""
        while not self._connection.closing:
            self._connection.send("REPLCONF", "ACK", "0")
            await asyncio.sleep(ACK_SECONDS)

    async def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end of the dump. Raises TransferDroppedError."""
        while len(self._held) < min(size, _GATHER_BYTES) and not self._transfer.done:
            self._held += self._transfer.feed(await self._receive())
        data = bytes(self._held[:size])
        del self._held[:size]
        return data

    async def _receive(self) -> bytes:
        address, so_far = self._connection.endpoint.address, self._transfer.received
        try:
            async with asyncio.timeout(self._silence):
                data = await self._connection.reader.read(READ_BYTES)
        except TimeoutError as exc:
            raise TransferDroppedError(
                f"{address} fell silent for {self._silence:g} s after {so_far} bytes of its dump"
            ) from exc
        except OSError as exc:
            raise TransferDroppedError(
                f"{address}: the connection broke after {so_far} bytes of its dump: {exc}"
            ) from exc
        if not data:
            raise TransferDroppedError(
                f"{address} closed the connection after {so_far} bytes of its dump; its log says why "
                "(restart, client-output-buffer-limit, repl-timeout, a failed BGSAVE)"
            )
        return data

    async def close(self) -> None:
        """Leave. The master forgets about us."""
        if self._acks is not None:
            self._acks.cancel()
        await self._connection.close()


def _no_transfer(endpoint: RedisEndpoint, said: str) -> RedisSourceError:
    return RedisSourceError(f"{endpoint.address} announced no dump after PSYNC, but sent {said!r}")


async def begin_patiently(endpoint: RedisEndpoint, *, retry_timeout: float, silence: float) -> Replica:
    """`Replica.begin`, tried again: a few times if the server is away, for `retry_timeout` seconds if it is busy."""
    away, began = 0, time.monotonic()

    def over(state: tenacity.RetryCallState) -> bool:
        nonlocal away
        error = state.outcome.exception() if state.outcome else None
        away += isinstance(error, RedisAwayError)
        return away > AWAY_RETRIES or time.monotonic() - began + state.upcoming_sleep > retry_timeout

    def tell(state: tenacity.RetryCallState) -> None:
        log.warning(
            "redis_handshake_retry",
            instance=endpoint.address,
            retry=state.attempt_number,
            wait_seconds=round(state.upcoming_sleep, 1),
            error_chain=error_chain(state.outcome.exception() or Exception()) if state.outcome else [],
            description="no dump yet; it is asked again",
        )

    tries = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type((RedisAwayError, RedisBusyError)),
        wait=tenacity.wait_exponential(multiplier=WAIT_FIRST, max=WAIT_LONGEST),
        stop=over,
        before_sleep=tell,
        reraise=True,
    )
    try:
        return await tries(Replica.begin, endpoint, silence)
    except RedisBusyError as exc:
        seconds = time.monotonic() - began
        raise RedisSourceError(
            f"{exc}. Gave up after {seconds:.0f} s: start again later, or raise MILLSTREAM_REDIS_RETRY_TIMEOUT"
        ) from exc
    except RedisAwayError as exc:
        raise RedisSourceError(f"{exc} (tried {away} times)") from exc
