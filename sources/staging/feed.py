"""Rows of the staging table into Kafka. A batch is one transaction: rows, mark, and the position behind them."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from millstream import metrics, tracing
from millstream.cluster import Cluster, client_config, new_topic
from millstream.errors import ConfigError, MillstreamError
from millstream.failpoints import declare, failpoint
from millstream.postgres import Connection, load
from millstream.settings import Settings
from schemas.names import dlq_topic
from schemas.products import TOPIC, BadRowError, normalise
from schemas.products.codec import MARK, ROW, Mark, headers_of, key_of, mark_value, row_value
from schemas.products.normalise import BRAND, STYLE
from sources.staging.reader import WATERMARK, Batch
from sources.transactional import TransactionalSource

SENT = declare("etl.sent", "rows and mark of a batch are produced, not committed")
COMMITTED = declare("etl.committed", "a batch and the position behind it are committed")

_SQL = load("sources.staging", "staging.sql")
_ROOM = 1000
"""Bytes of a message beside key and value."""


class RunReplacedError(MillstreamError):
    """Another run has claimed the products."""


@dataclass
class Fed:
    """What a run has done so far."""

    rows: int = 0
    deletes: int = 0
    outside: int = 0
    """Rows with no timestamp, one in the future, or no key (T73)."""
    warnings: Counter[str] = field(default_factory=Counter)
    """Field -> values that were mended."""
    rejected: list[str] = field(default_factory=list)
    """Texts of the first rows that go to the dead-letter topic."""
    bad: int = 0

    def look(self, batch: Batch, stop: bool) -> None:
        """Count a batch. Raises BadRowError for the first bad row if `stop`, and has counted nothing then."""
        warnings, errors = Counter[str](), list[str]()
        for row in () if batch.deletes else batch.rows:
            try:
                warnings.update(text.partition(":")[0] for text in normalise(row)[1])
            except BadRowError as error:
                if stop:
                    raise
                errors.append(str(error))
        self.rows += len(batch.rows)
        self.deletes += len(batch.rows) if batch.deletes else 0
        self.outside += len(batch.rows) if batch.end is None and not batch.deletes else 0
        self.warnings += warnings
        self.bad += len(errors)
        self.rejected += errors[: 20 - len(self.rejected)]


class StagingFeeder:
    """One run. Rows of runs before it that are still under way are left out by the sink (T72)."""

    def __init__(self, settings: Settings, run: str | None = None) -> None:
        self.run = run or secrets.token_hex(8)
        self.topic = settings.namespace + TOPIC
        self._settings, self.sent, self._limit = settings, 0, 0
        self._source: TransactionalSource | None = None

    async def claim(self, connection: Connection) -> None:
        """Claim the products for this run, as long as the connection lasts. Raises ConfigError if another has."""
        if not await connection.fetchval(_SQL["lock"], WATERMARK):
            raise ConfigError("another `millstream etl products` writes to this database: wait until it has ended")
        await connection.execute(_SQL["claim"], WATERMARK, self.run)

    async def begin(self) -> None:
        """Create the topics and fence feeders before this one. Raises BrokerError."""
        await asyncio.to_thread(self._open)

    async def send(self, batch: Batch) -> None:
        """Feed a batch, all of it or nothing. Raises BrokerError, FencedError, BadRowError (too big a row)."""
        await asyncio.to_thread(self._send, batch)

    async def arrived(self, connection: Connection) -> int:
        """How many of the rows are in the sink. Raises RunReplacedError."""
        found = await connection.fetchval(_SQL["arrived"], WATERMARK, self.run)
        if found is None:
            raise RunReplacedError("another `millstream etl products` has begun; what this one fed is left to it")
        return int(found)

    def _open(self) -> None:
        s = self._settings
        cluster = Cluster(client_config(s), s.request_timeout)
        cluster.create([new_topic(s, self.topic, 1), new_topic(s, dlq_topic(self.topic), 1)])
        self._limit = min(int(s.max_message_bytes), int(cluster.topic_config(self.topic, "max.message.bytes")))
        self._source = TransactionalSource(s, f"{s.group_id}-etl-products", self.topic, self._limit)
        self._source.position()

    def _send(self, batch: Batch) -> None:
        assert self._source is not None, "begin() comes first"
        records = [self._record(row, batch.deletes) for row in batch.rows]
        with tracing.span("etl feed", attributes={
            "messaging.destination.name": self.topic, "messaging.batch.message_count": len(records),
        }):  # fmt: skip
            for key, value in records:
                self._source.send(key, value, headers_of(ROW, self.run))
            self.sent += len(records)
            end = batch.end
            mark = Mark(self.sent) if end is None else Mark(self.sent, *end)
            self._source.send(b"", mark_value(mark), headers_of(MARK, self.run))
            failpoint(SENT)
            at = None if end is None else end.at.isoformat()
            self._source.commit(self.sent, json.dumps({"run": self.run, "row": self.sent, "at": at}))
        failpoint(COMMITTED)
        metrics.FED_RECORDS.labels("staging").inc(len(records))
        metrics.FED_BYTES.labels("staging").inc(sum(len(key) + len(value or b"") for key, value in records))

    def _record(self, row: Mapping[str, Any], delete: bool) -> tuple[bytes, bytes | None]:
        key, value = key_of(row[BRAND], row[STYLE]), None if delete else row_value(row)
        if (size := len(key) + len(value or b"") + _ROOM) > self._limit:
            raise BadRowError(row, "(all)", f"{size:,} bytes, topic {self.topic} takes {self._limit:,}: raise "
                              "MILLSTREAM_MAX_MESSAGE_BYTES and the topic's max.message.bytes")  # fmt: skip
        return key, value
