"""Waiting for a state, never for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def _late(what: str, timeout: float, last: object) -> AssertionError:
    return AssertionError(f"waited {timeout:g} s in vain for {what}; the last look gave {last!r}")


def wait_until(predicate: Callable[[], T], timeout: float, what: str, *, every: float = 0.05) -> T:
    """The first true value of `predicate`; AssertionError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise _late(what, timeout, value)
        time.sleep(every)
    return value


async def until(predicate: Callable[[], T | Awaitable[T]], timeout: float, what: str, *, every: float = 0.02) -> T:  # noqa: ASYNC109
    """`wait_until` for async tests; `predicate` may be async."""
    deadline = time.monotonic() + timeout
    while True:
        looked = predicate()
        value: T = await looked if inspect.isawaitable(looked) else looked
        if value:
            return value
        if time.monotonic() > deadline:
            raise _late(what, timeout, value)
        await asyncio.sleep(every)
