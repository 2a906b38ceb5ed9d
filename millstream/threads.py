"""Blocking calls beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """Run in a daemon thread of its own, which neither a rebalance nor the end of the process waits for."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # who is cancelled while waiting does not disturb the call

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as exc:  # noqa: BLE001 - handed on to who waits
            future.set_exception(exc)

    threading.Thread(target=run, name="observer", daemon=True).start()
    return await asyncio.wrap_future(future)
