"""A connection to a Redis: the few commands of a handshake, and an explanation for what it answers.

A replica's side of the protocol is not something that client libraries offer: after PSYNC come bytes, not replies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Coroutine
from typing import Any, Self

from sources.redis.endpoint import RedisEndpoint
from sources.redis.errors import RedisAwayError, RedisBusyError, RedisSourceError

CONNECT_SECONDS = 10.0
REPLY_SECONDS = 10.0
"""For an answer to anything but PSYNC, whose answer may wait for a fork."""
BUFFER_BYTES = 1 << 20
"""Twice as many at most wait in memory before the socket is left to fill up."""
_MAX_BULK = 64 << 20

_BUSY = ("LOADING", "BUSY", "NOMASTERLINK", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN")
_BUSY_TEXTS = ("can't sync while not connected", "max number of clients", "bgsave", "background save")


class Refused(Exception):
    """An error reply. The text is the server's."""


class Connection:
    """Commands and replies. All errors are RedisSourceError, but for error replies: Refused."""

    def __init__(self, endpoint: RedisEndpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.endpoint, self.reader, self._writer = endpoint, reader, writer

    @classmethod
    async def open(cls, endpoint: RedisEndpoint) -> Self:
        """Connect. Raises RedisAwayError, RedisSourceError, ConfigError (TLS files)."""
        context = None if endpoint.tls is None else await asyncio.to_thread(endpoint.tls.context)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(
                    endpoint.host, endpoint.port, ssl=context, limit=BUFFER_BYTES
                )
        except (OSError, TimeoutError) as exc:
            raise _not_connected(endpoint, exc) from exc
        return cls(endpoint, reader, writer)

    async def close(self) -> None:
        """Close it; whatever the other side says to that."""
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(2):
                await self._writer.wait_closed()

    @property
    def closing(self) -> bool:
        """It is broken, or about to be closed."""
        return self._writer.is_closing()

    def send(self, *words: str) -> None:
        """Send a command without waiting for anything."""
        encoded = [word.encode("utf-8", "surrogateescape") for word in words]
        parts = (b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)
        self._writer.write(b"*%d\r\n%b" % (len(encoded), b"".join(parts)))

    async def command(self, *words: str) -> str:
        """The reply as text. Raises Refused."""
        self.send(*words)
        return await self.reply(words[0], REPLY_SECONDS)

    async def reply(self, to: str, silence: float) -> str:
        """The next reply; empty lines before it are keep-alives. `silence`: seconds without anything at all."""
        line = b""
        while not line:
            line = (await self._within(silence, self.reader.readuntil(b"\n"), to)).strip(b"\r\n")
        kind, text = line[:1], line[1:].decode("utf-8", "backslashreplace")
        if kind == b"-":
            raise Refused(text)
        if kind in (b"+", b":"):
            return text
        if kind == b"$" and text.isdigit() and int(text) <= _MAX_BULK:
            body = await self._within(silence, self.reader.readexactly(int(text) + 2), to)
            return body[:-2].decode("utf-8", "backslashreplace")
        raise self._no_redis(line)

    async def _within(self, seconds: float, reading: Coroutine[Any, Any, bytes], to: str) -> bytes:
        address = self.endpoint.address
        try:
            async with asyncio.timeout(seconds):
                return await reading
        except TimeoutError as exc:
            raise RedisAwayError(f"{address} did not answer {to} for {seconds:g} s; {self._tls()}") from exc
        except asyncio.LimitOverrunError as exc:
            raise self._no_redis(await self.reader.read(80)) from exc
        except asyncio.IncompleteReadError as exc:
            if exc.partial:
                raise self._no_redis(exc.partial) from exc
            raise RedisAwayError(f"{address} closed the connection instead of answering {to}; {self._tls()}") from exc
        except OSError as exc:
            hint = f"; {self._tls()}" if isinstance(exc, ssl.SSLError | ConnectionResetError) else ""
            raise RedisAwayError(f"{address}: the connection broke at {to}: {exc}{hint}") from exc

    def _tls(self) -> str:
        """A guess at what else is wrong."""
        if self.endpoint.tls is None:
            return "if it speaks TLS there, add --tls"
        return (
            "it may want a client certificate: --tls-cert, --tls-key"
            if not self.endpoint.tls.cert_file
            else "see its log"
        )

    def _no_redis(self, said: bytes) -> RedisSourceError:
        address = self.endpoint.address
        if said[:2] == b"\x15\x03":  # a TLS alert
            return RedisSourceError(f"{address} speaks TLS: add --tls")
        return RedisSourceError(f"{address} is not a Redis: it answered {said[:40]!r}. Check host and port")

    # ------------------------------------------------------------------ what is wrong, and what to do
    def explain(self, command: str, said: str) -> RedisSourceError:
        """The error for an error reply to `command`."""
        endpoint, address, lower = self.endpoint, self.endpoint.address, said.lower()
        code = said.partition(" ")[0]
        user = endpoint.username or "default"
        if code == "NOAUTH":
            return RedisSourceError(f"{address} asks for a password: give --password, or MILLSTREAM_REDIS_PASSWORD")
        if code == "WRONGPASS" or "invalid password" in lower:
            return RedisSourceError(
                f"{address} refused the password of user {user!r} ({said}): check --username and --password"
            )
        if command == "AUTH" and ("no password is set" in lower or "without any password configured" in lower):
            return RedisSourceError(
                f"{address} has no password ({said}): leave --password out, or name an ACL user with --username"
            )
        if command == "AUTH" and "wrong number of arguments" in lower:
            return RedisSourceError(f"{address} knows no users (it is older than Redis 6): leave --username out")
        if code == "NOPERM":
            rule = "+cluster|nodes" if command.startswith("CLUSTER") else "+ping +replconf +psync"
            return RedisSourceError(
                f"{address} does not let user {user!r} run {command} ({said}): on the server, ACL SETUSER {user} {rule}"
            )
        if code in _BUSY or any(text in lower for text in _BUSY_TEXTS):
            link = "" if code not in ("NOMASTERLINK", "MASTERDOWN") else "; it is a replica without its master"
            return RedisBusyError(f"{address} cannot {command} just now: {said}{link}")
        if code == "DENIED":
            return RedisSourceError(
                f"{address} is in protected mode and takes no connection from here: on the server set a password, or "
                "bind it to an address and switch protected-mode off"
            )
        if "cluster support disabled" in lower:
            return RedisSourceError(f"{address} is no node of a Redis Cluster: use from-standalone")
        if "unknown command" in lower or "not allowed" in lower or "unsupported" in lower:
            return RedisSourceError(
                f"{address} does not know {command} ({said}): a proxy or managed service does not let replicas in. "
                "Name the Redis server behind it, or dump its RDB file with from-file"
            )
        return RedisSourceError(f"{address} answered {command} with: {said}")

    async def log_in(self) -> None:
        """AUTH if there is a password, and PING. Raises RedisSourceError."""
        endpoint = self.endpoint
        try:
            if endpoint.password or endpoint.username:
                await self.command("AUTH", *([endpoint.username] if endpoint.username else []), endpoint.password)
        except Refused as exc:
            raise self.explain("AUTH", str(exc)) from None
        try:
            await self.command("PING")
        except Refused as exc:
            if not str(exc).startswith("NOPERM"):  # a replica's user may well not be allowed to
                raise self.explain("PING", str(exc)) from None


def _not_connected(endpoint: RedisEndpoint, exc: OSError) -> RedisSourceError:
    address = endpoint.address
    if isinstance(exc, socket.gaierror) and exc.errno != socket.EAI_AGAIN:
        return RedisSourceError(f"{address}: there is no host of the name {endpoint.host!r}. Check the address")
    if isinstance(exc, ssl.SSLCertVerificationError):
        return RedisSourceError(
            f"{address}: its TLS certificate is not trusted ({exc.verify_message}): name the authority with "
            "--tls-ca-cert, or do without verification by --tls-insecure"
        )
    if isinstance(exc, ssl.SSLError):
        return RedisSourceError(
            f"{address}: no TLS connection ({exc.reason or exc}): perhaps it does not speak TLS on this port (leave "
            "--tls out), or asks for a client certificate (--tls-cert, --tls-key)"
        )
    if isinstance(exc, TimeoutError):
        tls = " If it does not speak TLS on this port, leave --tls out" if endpoint.tls else ""
        return RedisAwayError(
            f"{address} does not answer (waited {CONNECT_SECONDS:g} s): check host, port, firewall.{tls}"
        )
    why = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else exc.strerror or exc
    return RedisAwayError(f"cannot connect to {address}: {why}. Is Redis running there?")
