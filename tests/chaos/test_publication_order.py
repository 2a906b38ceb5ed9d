"""Two sinks, and the first one refuses a batch: the second one must not have shown it by then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from millstream.errors import BatchRefusedError
from schemas.batch import Batch
from sinks.memory import MemoryBatchSink
from sinks.wrapper import SinkGroup


class _Refusing(MemoryBatchSink):
    async def finalize_batch(self, batch: Batch, runs: Any) -> None:
        await asyncio.sleep(0.05)  # not the first one to be through
        raise BatchRefusedError("a later run voided this one")


async def test_a_batch_that_one_sink_refuses_is_not_published_by_the_next_one() -> None:
    first, second = _Refusing("first"), MemoryBatchSink("second")
    group, batch = SinkGroup([first, second]), Batch("c", 0)
    with pytest.raises(BatchRefusedError):
        await group.finalize_batch(batch, {})
    assert second.published == {}
