"""The generic stream, told to stop: it goes on stopping only after a rebalance has begun. `faust -A` this module."""

from __future__ import annotations

import asyncio
import sys

from tests.chaos.stream_app import app

STOPPING = "chaos: told to stop"
_rebalanced = asyncio.Event()
_stop_consumer, _when_stopped = app._stop_consumer, app._on_rebalance_when_stopped


async def _late() -> None:
    print(STOPPING, file=sys.__stdout__, flush=True)
    await _rebalanced.wait()
    await _stop_consumer()


def _tell() -> None:
    _rebalanced.set()
    _when_stopped()


app._stop_consumer, app._on_rebalance_when_stopped = _late, _tell  # type: ignore[method-assign]
