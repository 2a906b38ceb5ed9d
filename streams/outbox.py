"""The outbox relay inside a worker: switched on by naming this module in MILLSTREAM_STREAMS, and off by leaving it out.

Nothing else depends on it: while it is off, writers keep writing their events, which are published later (RO-80).
"""

from __future__ import annotations

import asyncio
from typing import Any

from mode import Service

from millstream.postgres import postgres_url
from sources.outbox import PollingRelay, ReplicationRelay
from streams import app
from streams.engine.failure import die

_url = postgres_url(app.settings)


@app.service
class Outbox(Service):
    """Publishes until the worker stops; an error that it cannot wait out ends the worker."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        kind = ReplicationRelay if app.settings.outbox_via == "replication" else PollingRelay
        self._relay: PollingRelay | ReplicationRelay = kind(app.settings, _url)
        self._running: asyncio.Task[None] | None = None

    async def on_start(self) -> None:
        """Begin."""
        self._running = asyncio.create_task(self._run())

    async def on_stop(self) -> None:
        """After the batch that is under way."""
        self._relay.stop()
        if self._running is not None:
            await self._running

    async def _run(self) -> None:
        try:
            await self._relay.run()
        except Exception as exc:  # noqa: BLE001 - whatever it is, the worker must not go on as if it published
            die(exc)
