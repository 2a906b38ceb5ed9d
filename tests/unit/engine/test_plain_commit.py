"""Committing without transactions does not wait for ever."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from millstream.cluster import TP
from streams.engine.loading import Loader
from streams.engine.plan import Position
from streams.engine.transaction import UndecidedTransactionError


async def test_offsets_that_are_not_committed_in_time_are_an_undecided_commit() -> None:
    # U8: the commit thread waited without a bound, and with it every partition of the worker
    cancelled = threading.Event()

    async def commit_plain(_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    app = SimpleNamespace(settings=SimpleNamespace(request_timeout=0.05))
    thread = SimpleNamespace(commit_plain=commit_plain)
    consumer: Any = SimpleNamespace(app=app, _thread=thread, loop=asyncio.get_running_loop())
    loader = Loader(consumer, None)  # type: ignore[arg-type]
    with pytest.raises(UndecidedTransactionError, match=r"within 0\.05 s \(MILLSTREAM_REQUEST_TIMEOUT\)"):
        await asyncio.to_thread(loader._commit_plain, {TP("t", 0): Position(1, "id", 0)})
    assert await asyncio.to_thread(cancelled.wait, 10)
