"""The coordinator: sums the facts of each batch, and has the sinks publish it when all of it is there.

It decides by what was told through Kafka alone; nothing lists directories (T25). Publishing is done before the commit
that says so and again after a crash, which the sinks take as success (T31).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from millstream import metrics
from millstream.errors import BatchRefusedError, RunVoidError
from millstream.logs import get_logger
from schemas.codecs import Codec
from schemas.control import FactCodec, decode_fact
from schemas.names import batches_topic
from streams import app
from streams.batches_view import overview
from streams.engine.chunk import Chunk
from streams.engine.sinking import Sinks
from streams.ledger import FACT_PARTITIONS, AbortRun, Effect, Ledger, Publish, Tell, rate
from streams.output import output

log = get_logger(__name__)

codec: Codec = FactCodec()
facts = app.chunk_topic(batches_topic(), codec=codec, partitions=FACT_PARTITIONS)
states = app.Table(
    "batches",
    partitions=FACT_PARTITIONS,
    key_type=bytes,
    value_type=bytes,
    help="State of every batch and instance (streams.ledger).",
)


app.observer.sections["batches"] = lambda: overview(states.data.scan, time.time())


@app.agent(facts, tables=[states])
async def coordinate(chunks: Any) -> None:
    """Facts about batches into their states; complete batches are published."""
    coordinator = Coordinator(Ledger(states, allow_dead_letters=app.settings.allow_dead_letters), output)
    async for chunk in chunks:
        await coordinator.take(chunk)


class Coordinator:
    """What the agent does with one chunk."""

    def __init__(self, ledger: Ledger, sinks: Sinks) -> None:
        self._ledger, self._sinks = ledger, sinks

    async def take(self, chunk: Chunk) -> None:
        """Apply the chunk's facts and do what follows from them."""
        touched: dict[str, None] = {}
        for n, row in enumerate(chunk.table.to_pylist()):
            if n % 200 == 199:
                await asyncio.sleep(0)  # a backlog of facts must not hold the event loop
            key, at_ms = row["batch"], row["at_ms"]
            touched[key] = None
            for effect in self._ledger.apply(key, decode_fact(row["fact"]), at_ms):
                await self._do(key, effect, at_ms)
        for key in touched:
            self._report(key)

    async def _do(self, key: str, effect: Effect, at_ms: int) -> None:
        match effect:
            case Tell(level, operation, fields, description):
                count(operation)
                getattr(log, level)(operation, **fields, description=description)
            case AbortRun(run):
                await self._sinks.abort_run(run)
            case Publish(batch, runs):
                try:
                    await self._sinks.finalize_batch(batch, runs)
                except (BatchRefusedError, RunVoidError) as exc:
                    told = self._ledger.refused(key, str(exc), at_ms)
                else:
                    told = self._ledger.published(key, at_ms)
                    self._count_published(key)
                for tell in told:
                    await self._do(key, tell, at_ms)

    def _count_published(self, key: str) -> None:
        metrics.BATCHES_PUBLISHED.inc()
        if (batch := self._ledger.batch(key)) is not None:
            metrics.BATCH_ROWS.inc(batch.rows)
            metrics.BATCH_SECONDS.observe(max(0.0, (batch.updated_ms - batch.begun_ms) / 1000))

    def _report(self, key: str) -> None:
        """RU-71: one line per batch and chunk of facts, so at most about one a second."""
        batch = self._ledger.batch(key)
        if batch is not None:
            cluster, instances = key.partition("/")[2], f"{batch.done}/{len(batch.instances)}"
            log.info(
                "progress_update",
                cluster=cluster,
                batch=key.partition("/")[0],
                processed_records=batch.rows,
                completed_instances=instances,
                rps=rate(batch),
                description=f"the batch is {batch.state}",
            )


def count(operation: str) -> None:
    """Count what a batch has come to, by the line that tells it."""
    if operation in ("producers_failed", "batch_refused"):
        metrics.BATCHES_FAILED.inc()
    elif operation == "batch_aborted":
        metrics.BATCHES_ABORTED.inc()
