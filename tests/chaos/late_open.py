"""The generic stream, told to stop while it opens its sinks: they are closed by the time it goes on. For `faust -A`."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from sinks.clickhouse import schema
from tests.chaos.stream_app import app

_ensure_own = schema.ensure_own


async def _late(client: Any, *args: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    # No event tells of it.
    while client._client is not None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await _ensure_own(client, *args)


schema.ensure_own = _late

__all__ = ["app"]
