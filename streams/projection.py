"""The projection of video events: each chunk into Postgres (and ClickHouse), then into the table of versions.

Run it with MILLSTREAM_STREAMS=streams.projection,streams.videos. The table `projection_versions` is changed after the
sinks hold the chunk, and becomes durable with its commit: it is never ahead of them (T2).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, MutableMapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from mode import Service

from millstream import metrics
from millstream.errors import PostgresError
from millstream.logs import get_logger
from schemas.chunk import Receipt
from schemas.events import AGGREGATE_TYPE, TOPIC
from schemas.events.codec import EventCodec
from sinks.clickhouse.config import ClickHouseConfig
from sinks.factory import clickhouse_config, postgres_config
from sinks.postgres import PostgresStream, VideoProjection
from sinks.postgres.inbox import prune_alone
from streams import app
from streams.engine.sinking import Sinks

PRUNE_SECONDS = 600.0
"""Between two prunings of the inbox."""

_stdlib = logging.getLogger(__name__)
log = get_logger(__name__)


def _history(config: ClickHouseConfig) -> Sinks:
    from sinks.clickhouse.events import VideoEvents

    return app.sinks(VideoEvents(config))


events = app.chunk_topic(
    app.settings.outbox_topics.get(AGGREGATE_TYPE, TOPIC),
    codec=EventCodec(),
    partitions=app.settings.outbox_topic_partitions,
)
projection_versions = app.Table("projection_versions", default=int)
projection = app.sinks(PostgresStream(postgres_config(app.settings), VideoProjection(), "projection"))
_clickhouse = clickhouse_config(app.settings) if app.settings.projection_clickhouse else None
history = None if _clickhouse is None else _history(_clickhouse)


@app.agent(events, tables=[projection_versions])
async def project(chunks: Any) -> None:
    """Events into the projection."""
    async for chunk in chunks:
        good = chunk.table.filter(pc.is_null(chunk.table["error_kind"]))
        receipts = await projection.write(chunk)
        if history is not None:
            from sinks.clickhouse.events import COLUMNS

            await history.write(chunk, good.select(COLUMNS))
        if _stdlib.isEnabledFor(logging.DEBUG):
            tell(chunk, good)
        metrics.PROJECTION_GAPS.inc(advance(projection_versions, good))
        _count(receipts, good)


@app.service
class InboxPruning(Service):
    """Forgets old events of the inbox now and then; of several workers one does."""

    @Service.task
    async def _prune(self) -> None:
        url, retention = postgres_config(app.settings).url, app.settings.projection_inbox_retention
        while retention is not None and not self.should_stop:
            try:
                if count := await prune_alone(url, retention):
                    log.info("inbox_pruned", events=count, description="applied long ago; see docs/changefeeds.md")
            except PostgresError as e:
                log.warning("inbox_not_pruned", error=str(e), description="tried again later; nothing waits for it")
            await self.sleep(PRUNE_SECONDS)


def advance(versions: MutableMapping[str, int], good: pa.Table) -> int:
    """Raise each video's highest version; how many versions were skipped on the way (gaps, T45)."""
    skipped, seen = 0, dict[str, set[int]]()
    for video, version in zip(good["aggregate_id"].to_pylist(), good["version"].to_pylist(), strict=True):
        seen.setdefault(video, set()).add(version)
    for video, found in seen.items():
        have, top = versions[video], max(found)
        if top > have:
            versions[video] = top
            skipped += top - have - sum(version > have for version in found)
    return skipped


def tell(chunk: Any, good: pa.Table) -> None:
    """A line for each event, at level debug (RO-66)."""
    for row in good.select(["event_id", "aggregate_id", "version", "_offset"]).to_pylist():
        place = f"{chunk.topic}-{chunk.partition}@{row.pop('_offset')}"
        log.debug("projection_event", **row, message_id=place, description="the projection holds it")


def _count(receipts: Iterable[Receipt], good: pa.Table) -> None:
    for receipt in receipts:
        for result, number in receipt.details.items():
            metrics.PROJECTION_EVENTS.labels(result).inc(int(number))
    if good.num_rows:
        # As a number: pyarrow imports pandas to give a time, a second of a worker's first chunk.
        oldest = pc.min(good["occurred_at"].cast(pa.int64())).as_py() / 1e6
        metrics.PROJECTION_LAG.observe(max(0.0, time.time() - oldest))
