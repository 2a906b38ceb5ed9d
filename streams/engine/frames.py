"""Answers of the broker, read off the socket with one copy instead of four.

asyncio's StreamReader grows a buffer by each piece that arrives, wakes its reader for it, pauses the socket, resumes
it, and copies the whole when it is complete. aiokafka always knows how long an answer is: here the pieces are kept as
they came and joined once. A fetch answer has up to MILLSTREAM_FETCH_BYTES = 16 MiB.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from aiokafka import conn


class FrameReader(asyncio.StreamReader):
    """A StreamReader for `readexactly` and `at_eof`, all that aiokafka asks of it."""

    _chunks: deque[bytes | memoryview]
    _held: int
    _wanted: int
    # StreamReader's own, which its type stubs do not tell of:
    _limit: int
    _eof: bool
    _paused: bool
    _transport: Any
    _wakeup_waiter: Callable[[], None]
    _wait_for_data: Callable[[str], Coroutine[Any, Any, None]]

    @classmethod
    def take_over(cls, reader: asyncio.StreamReader) -> None:
        """Turn a new StreamReader into one of these: aiokafka makes it inside a longer function."""
        reader.__class__ = cls
        assert isinstance(reader, cls)
        reader._chunks, reader._held, reader._wanted = deque(), 0, 0

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # asyncio gives bytes
        """Keep what the socket gave; its reader is woken when all it waits for is there."""
        if not data:
            return
        self._chunks.append(data)
        self._held += len(data)
        if self._held >= self._wanted:
            self._wakeup_waiter()
            if self._held - self._wanted > 2 * self._limit and not self._paused and self._transport is not None:
                self._transport.pause_reading()
                self._paused = True

    def at_eof(self) -> bool:
        """Nothing is left and nothing more will come."""
        return self._eof and not self._held

    async def readexactly(self, n: int) -> bytes:
        """n bytes. Raises IncompleteReadError if the connection ends before."""
        if (exception := self.exception()) is not None:
            raise exception
        self._wanted = n
        while self._held < n:
            if self._eof:
                raise asyncio.IncompleteReadError(self._take(self._held), n)
            await self._wait_for_data("readexactly")  # resumes the socket
        self._wanted = 0
        return self._take(n)

    def _take(self, n: int) -> bytes:
        parts: list[bytes | memoryview] = []
        self._held -= n
        while n > 0:
            chunk = self._chunks.popleft()
            if len(chunk) > n:
                whole = memoryview(chunk)
                self._chunks.appendleft(whole[n:])
                chunk = whole[:n]
            parts.append(chunk)
            n -= len(chunk)
        return b"".join(parts)


class _Protocol(conn.AIOKafkaProtocol):
    def __init__(self, closed: Any, reader: asyncio.StreamReader, *args: Any, **kwargs: Any) -> None:
        FrameReader.take_over(reader)
        super().__init__(closed, reader, *args, **kwargs)


def install() -> None:
    """Have aiokafka's connections of this process read in this way. Idempotent."""
    conn.AIOKafkaProtocol = _Protocol
