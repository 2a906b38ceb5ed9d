"""In a worker, named in MILLSTREAM_STREAMS: its first seek comes only after its assignment is gone."""

from __future__ import annotations

import asyncio
from typing import Any

from streams.engine.membership import ConsumerThread

_seek_wait = ConsumerThread._seek_wait
_waited = False


async def _late(self: Any, consumer: Any, partitions: Any) -> None:
    global _waited  # noqa: PLW0603
    # No event tells of it.
    while partitions and not _waited and consumer.assignment() >= set(partitions):  # noqa: ASYNC110
        await asyncio.sleep(0)
    _waited = _waited or bool(partitions)
    await _seek_wait(self, consumer, partitions)


ConsumerThread._seek_wait = _late
