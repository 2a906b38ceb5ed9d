"""Reading: what was fetched of the worker's partitions, and how much more of it is wanted (back-pressure)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from faust.transport.drivers import aiokafka as driver

from millstream import metrics
from millstream.cluster import TP
from streams.engine.cycle import CommitCycle
from streams.engine.membership import ConsumerThread
from streams.engine.partition import PartitionState


class Reading:
    """The partitions of the current assignment, and what is read into them."""

    def __init__(self, thread: Callable[[], ConsumerThread], cycle: CommitCycle, budget: int) -> None:
        self._thread, self._cycle = thread, cycle
        self._budget = budget
        """Decoded bytes that all partitions may hold together."""
        self.parts: dict[TP, PartitionState] = {}
        self.lock = asyncio.Lock()
        """Held during a fetch."""

    async def read(self) -> bool | None:
        """Fetch once, for the partitions that have room; whether there was anything, None if none has room."""
        wanted = self._wanted()
        if not wanted:
            return None
        async with self.lock:
            epoch = self._cycle.epoch
            found = await self._thread().getmany(wanted, 0.1)
            if epoch != self._cycle.epoch:
                return bool(found)
            self._add(found)
            if missing := {tp for tp in wanted - found.keys() if self.parts[TP(*tp)].owes_plan}:
                self._pass(await self._thread().positions(missing))
        return bool(found)

    def _pass(self, positions: dict[Any, int]) -> None:
        """Aborted and control records are not handed over: where only such are left of a plan, replay has to see it."""
        for tp, position in positions.items():
            part = self.parts.get(TP(*tp))
            if part is not None and (plan := part.position.plan) and position > plan.last:
                part.passed(position)
                self._cycle.wake.set()

    def _wanted(self) -> set[Any]:
        # Open chunks count: while a sink is down every partition holds one.
        buffered = sum(p.buffered_bytes for p in self.parts.values()) + self._cycle.open_bytes
        metrics.BUFFERED_BYTES.set(buffered)
        return {
            driver._TopicPartition(*tp)
            for tp, p in self.parts.items()
            # A planned range that is not open yet must be read, whatever the others hold: its chunk is the next one.
            if p.wants_more and (buffered < self._budget or p.owes_plan)
        }

    def _add(self, found: dict[Any, list[Any]]) -> None:
        now = time.monotonic()
        for tp, batches in found.items():
            part = self.parts.get(TP(*tp))
            if part is not None and batches:
                owed = part.owes_plan
                part.add(batches, now)
                label = metrics.stream_label(tp.topic)
                metrics.FETCHED_RECORDS.labels(label).inc(sum(len(b.records) for b in batches))
                metrics.FETCHED_BYTES.labels(label).inc(sum(b.nbytes for b in batches))
                if owed or (part.position.plan is None and part.ready(now)):
                    self._cycle.wake.set()
