"""The dump of a Redis as a binary stream for a thread; an event loop in a thread of its own talks to the server.

What is not read stays in the socket: a slow reader slows the master's sending down, and memory stays where it is.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from sources.redis.endpoint import RedisEndpoint
from sources.redis.errors import TransferDroppedError
from sources.redis.replica import Replica, begin_patiently

T = TypeVar("T")
BEAT_SECONDS = 1.0
"""Between two calls of `waiting`."""


class DumpStream:
    """Readable once; `open` first. `close` ends a `read` that waits in another thread."""

    def __init__(self, endpoint: RedisEndpoint, *, retry_timeout: float, silence: float) -> None:
        self._endpoint, self._retry_timeout, self._silence = endpoint, retry_timeout, silence
        self._replica: Replica | None = None
        self._closed = False
        self._lock = threading.Lock()
        """Between the last work that is taken on and the end of the loop."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="redis-replica", daemon=True)
        self._thread.start()

    @property
    def received(self) -> int:
        """Bytes of the dump so far."""
        return self._replica.received if self._replica else 0

    def open(self, waiting: Callable[[], None]) -> None:
        """Until the master begins to send; `waiting` is called every second. Raises RedisSourceError, ConfigError."""
        self._replica = self._run(
            begin_patiently(self._endpoint, retry_timeout=self._retry_timeout, silence=self._silence), waiting
        )

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes; none at the end. Raises TransferDroppedError."""
        assert self._replica is not None
        return self._run(self._replica.read(size if size > 0 else 1 << 20))

    def seekable(self) -> bool:
        """Never."""
        return False

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Never."""
        raise io.UnsupportedOperation("a dump off the network cannot be read again")

    def close(self) -> None:
        """Leave the master. May be called more than once, from any thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._leave(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _leave(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if self._replica is not None:
            await self._replica.close()
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_default_executor()

    def _run(self, work: Coroutine[Any, Any, T], waiting: Callable[[], None] | None = None) -> T:
        with self._lock:
            if self._closed:
                work.close()
                raise self._given_up()
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        while waiting is not None and not concurrent.futures.wait([future], BEAT_SECONDS).done:
            waiting()
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise self._given_up() from None

    def _given_up(self) -> TransferDroppedError:
        return TransferDroppedError(f"{self._endpoint.address}: the dump was given up here")
