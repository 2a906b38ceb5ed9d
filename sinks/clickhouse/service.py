"""The two ClickHouse sinks: dump batches into the tables of `sql/`, and ordinary streams into a user's own table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from millstream.errors import BatchRefusedError, RetryableSinkError, SinkError
from millstream.failpoints import declare, failpoint
from millstream.logs import get_logger
from schemas.batch import Batch, Run
from schemas.chunk import Chunk, Receipt
from sinks.base import InstanceRange
from sinks.clickhouse import schema
from sinks.clickhouse.client import Parameters
from sinks.clickhouse.closing import Closing, tag
from sinks.clickhouse.config import ClickHouseConfig
from sinks.clickhouse.encode import encode_records, encode_stream, to_ipc
from sinks.clickhouse.fence import Fence
from sinks.clickhouse.http import make_client
from sinks.clickhouse.insert import BEFORE, Block, ChunkInserter, Restriction
from sinks.clickhouse.schema import RAW, RAW_COLUMNS, quoted, statement

log = get_logger(__name__)

BEFORE_MARKER = declare("clickhouse.finalize.before_marker", "voided rows are gone, the batch is not visible")
AFTER_MARKER = declare("clickhouse.finalize.after_marker", "the batch is visible, its completion not reported")
AFTER_DELETE = declare("clickhouse.finalize.after_delete", "rows of one instance's voided runs were deleted")

_BATCH = "cluster = {cluster:String} AND batch = fromUnixTimestamp64Nano({batch:Int64}, 'UTC')"
_INSTANCE = f"{_BATCH} AND instance = {{instance:String}}"
_VALID = "_topic = {label:String} AND _partition = {partition:Int32} AND _offset BETWEEN {first:Int64} AND {last:Int64}"
_LAST_BATCH_NS = (2**32 - 1) * 1_000_000_000
"""End of DateTime: the TTL expression wraps around behind it and would delete the batch at once."""


class _ClickHouseSink:
    """What both sinks share: the connection, the fence, the inserter."""

    def __init__(self, config: ClickHouseConfig, table: str, name: str) -> None:
        self.name = name
        self._config, self._table = config, table
        self._client = make_client(config)
        self._fence = Fence(self._client, config.database)
        self._inserter = ChunkInserter(name, self._client, self._fence, config.database, table)

    async def _connect(self) -> None:
        await self._client.open()
        try:
            await schema.ensure_database(self._client, self._config.database, create=self._config.auto_create_tables)
            await self._check_tables()
            await schema.ensure_own(self._client, self._config.database, schema.FENCE)
        except BaseException:
            await self._client.close()
            raise

    async def _check_tables(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        """Release the connection; the embedded engine's directory becomes free for other processes."""
        await self._client.close()


class ClickHouseBatches(_ClickHouseSink):
    """BatchSink of Redis dumps: rows go to `redis_records_raw`, a batch shows in the view once it is complete."""

    def __init__(
        self, config: ClickHouseConfig, name: str = "clickhouse", now: Callable[[], float] = time.time
    ) -> None:
        super().__init__(config, RAW, name)
        self._now = now
        self._closing = Closing(self._client, config.database)
        self._ttl_seconds: int | None = None
        self._warned: set[str] = set()

    async def open(self) -> None:
        """Connect and check the tables (rules of --auto-create-tables). Raises SinkError, RetryableSinkError."""
        await self._connect()

    async def _check_tables(self) -> None:
        self._ttl_seconds = await schema.ensure_batch_tables(
            self._client,
            self._config.database,
            create=self._config.auto_create_tables,
            ttl_days=self._config.batch_ttl_days,
        )
        await schema.ensure_own(self._client, self._config.database, schema.CLOSED)

    async def published(self, batch: Batch) -> bool:
        """Whether the batch is complete there. Instead of `open`: connects for this alone, and makes nothing.

        Raises SinkError, RetryableSinkError.
        """
        await self._client.open()
        try:
            return await self._completed(batch)
        finally:
            await self._client.close()

    async def have(self, chunk: Chunk) -> Receipt | None:
        """See Sink. The label tells logs apart, batch and instance narrow the count to the primary key."""
        return await self._inserter.have(chunk, self._restriction(_run(chunk)))

    async def write_chunk(self, chunk: Chunk) -> Receipt:
        """See Sink (RU-15). Raises RunVoidError too: the batch is published without the run."""
        run = _run(chunk)
        failpoint(BEFORE)
        label = await self._inserter.label(chunk)
        block, saturated = await asyncio.to_thread(_encode, chunk, run, label)
        if saturated and run.run_id not in self._warned:
            self._warned.add(run.run_id)
            log.warning(
                "expire_at_ms_saturated",
                instance=run.instance,
                batch=run.batch.rfc3339,
                rows=saturated,
                description="expiries outside of 1900..2299 are stored as the nearest end of that range",
            )
        return await self._inserter.write(chunk, block, self._restriction(run))

    async def open_batch(self, run: Run) -> None:
        """Refuse a batch that is past its TTL (T37), complete (T29) or closed. Raises BatchRefusedError."""
        self._refuse_expired(run.batch)
        if await self._completed(run.batch):
            raise BatchRefusedError(
                f"batch {run.batch.rfc3339} of cluster {run.batch.cluster!r} is already complete in ClickHouse"
                f" {self._client.url}. Feed it under another --batch-timestamp; a complete batch is never mixed with a"
                " second run"
            )
        await self._closing.check_open(run.batch)

    async def finalize_instance(self, run: Run, where: InstanceRange) -> int:
        """Rows of the run in the sink; there is nothing else to do here (RU-16)."""
        self._refuse_expired(run.batch)
        label = await self._fence.label_of(where.topic_id, where.epoch, where.partition)
        if label is None:
            return 0
        return await self._inserter.count(label, where.partition, where.begin, where.done, self._restriction(run))

    async def finalize_batch(self, batch: Batch, runs: dict[str, tuple[Run, InstanceRange]]) -> None:
        """Close the batch, delete the rows of voided runs, write the completion marker, once (RU-17, T31).

        Raises BatchRefusedError.
        """
        if await self._completed(batch):
            return
        self._refuse_expired(batch)
        await self._closing.close(batch, runs)
        await self._inserter.end_all(tag(batch))
        strangers: Parameters = {**_batch(batch), "instances": sorted(runs)}
        await self._delete_voided(f"{_BATCH} AND instance NOT IN {{instances:Array(String)}}", "1 = 0", strangers)
        for instance, (_, where) in sorted(runs.items()):
            parameters: Parameters = {**_batch(batch), "instance": instance}
            label = await self._fence.label_of(where.topic_id, where.epoch, where.partition)
            if label is None:
                await self._delete_voided(_INSTANCE, "1 = 0", parameters)
                continue
            valid: Parameters = {"label": label, "partition": where.partition, "first": where.begin, "last": where.done}
            await self._delete_voided(_INSTANCE, _VALID, {**parameters, **valid})
        failpoint(BEFORE_MARKER)
        purpose = f"complete batch {batch.key}"
        await self._client.run(self._statement("complete_batch"), _batch(batch), purpose=purpose)
        if not await self._completed(batch):
            raise RetryableSinkError(f"ClickHouse {self._client.url}: could not {purpose}: acknowledged, and not there")
        failpoint(AFTER_MARKER)
        log.info(
            "clickhouse_finalize_batch",
            cluster=batch.cluster,
            batch=batch.rfc3339,
            instances=len(runs),
            description="batch complete",
        )

    async def abort_run(self, run: Run) -> None:
        """See BatchSink. Its rows are invisible; they go with the batch's completion by a later run, or by TTL."""
        log.info("clickhouse_abort_run", instance=run.instance, run=run.run_id, description="rows stay until finalized")

    async def count_by_instance(self, batch: Batch) -> dict[str, int]:
        """Instance -> rows of exactly this batch, read from the raw table: the view shows the latest only (T38)."""
        rows = await self._client.rows(
            self._statement("batch_instances"), _batch(batch), purpose=f"count the rows of batch {batch.key}", slow=True
        )
        return {str(instance): int(count) for instance, count in rows}

    def _restriction(self, run: Run) -> Restriction:
        of = (*_batch(run.batch).items(), ("instance", run.instance))
        return Restriction(_INSTANCE, of, scope=f"-{run.run_id}", gate=self._closing.gate(run))

    async def _completed(self, batch: Batch) -> bool:
        rows = await self._client.rows(
            self._statement("batch_completed"), _batch(batch), purpose=f"look whether batch {batch.key} is complete"
        )
        return int(rows[0][0]) > 0

    async def _delete_voided(self, restriction: str, valid: str, parameters: Parameters) -> None:
        purpose = f"delete rows of voided runs ({parameters.get('instance', 'instances without a valid run')})"
        count = self._statement("count_voided", restriction=restriction, valid=valid)

        async def left() -> int:
            return int((await self._client.rows(count, parameters, purpose=purpose, slow=True))[0][0])

        if not await left():
            return
        delete = self._statement("delete_voided", restriction=restriction, valid=valid)
        await self._client.run(delete, parameters, purpose=purpose, slow=True)
        if rows := await left():
            raise RetryableSinkError(
                f"ClickHouse {self._client.url}: could not {purpose}: acknowledged, and {rows} rows are still there"
            )
        failpoint(AFTER_DELETE)
        log.info("clickhouse_delete_voided", instance=parameters.get("instance", ""), description=purpose)

    def _statement(self, statement_name: str, **names: str) -> str:
        return statement(statement_name, database=quoted(self._config.database), **names)

    def _refuse_expired(self, batch: Batch) -> None:
        if batch.batch_ts > _LAST_BATCH_NS:
            raise BatchRefusedError(
                f"batch {batch.rfc3339}: ClickHouse's TTL cannot reckon with times after 2106-02-07"
            )
        if self._ttl_seconds is None:
            return
        age = timedelta(seconds=self._now() - batch.batch_ts // 1_000_000_000)
        if age < timedelta(seconds=self._ttl_seconds):
            return
        now = datetime.fromtimestamp(self._now(), UTC)
        raise BatchRefusedError(
            f"batch {batch.rfc3339} of cluster {batch.cluster!r} is {age.days} days old at {now:%Y-%m-%dT%H:%M:%SZ}:"
            f" ClickHouse would delete it, the TTL of {RAW} is {timedelta(seconds=self._ttl_seconds)}. Use a later"
            f" --batch-timestamp, or run for {RAW} and {schema.COMPLETED}:"
            f" ALTER TABLE {quoted(self._config.database)}.<table> MODIFY TTL toDateTime(batch) + INTERVAL"
            f" {age.days + 30} DAY, and restart"
        )


class ClickHouseStream(_ClickHouseSink):
    """Sink of an ordinary stream into a table of the user's own, which has `_topic, _partition, _offset`."""

    def __init__(self, config: ClickHouseConfig, table: str, name: str | None = None) -> None:
        super().__init__(config, table, name or f"clickhouse.{table}")
        self._columns: dict[str, str] = {}

    async def open(self) -> None:
        """Connect and check the table. Raises SinkError with the ALTER to run, RetryableSinkError."""
        await self._connect()

    async def _check_tables(self) -> None:
        self._columns = await schema.stream_columns(self._client, self._config.database, self._table)

    async def have(self, chunk: Chunk) -> Receipt | None:
        """See Sink."""
        return await self._inserter.have(chunk, Restriction())

    async def write_chunk(self, chunk: Chunk) -> Receipt:
        """See Sink. Columns that the records lack get the table's defaults."""
        failpoint(BEFORE)
        unknown = [name for name in chunk.records.column_names if name not in self._columns]
        if unknown:
            raise SinkError(
                f"table {self._config.database}.{self._table} has no column {', '.join(unknown)}, which records of"
                f" {chunk.id.topic} have. Add them with ALTER TABLE … ADD COLUMN, or drop them in the agent"
            )
        label = await self._inserter.label(chunk)
        return await self._inserter.write(chunk, await asyncio.to_thread(self._encode, chunk, label), Restriction())

    def _encode(self, chunk: Chunk, label: str) -> Block:
        rows = encode_stream(chunk.records, label, chunk.id.partition)
        return Block({name: self._columns[name] for name in rows.column_names}, to_ipc(rows))


def _encode(chunk: Chunk, run: Run, label: str) -> tuple[Block, int]:
    rows, saturated = encode_records(chunk.records, run, label, chunk.id.partition)
    return Block(RAW_COLUMNS, to_ipc(rows)), saturated


def _run(chunk: Chunk) -> Run:
    if chunk.run is None:
        raise SinkError(f"chunk {chunk.id} of {chunk.id.topic} carries no run; use ClickHouseStream for plain streams")
    return chunk.run


def _batch(batch: Batch) -> dict[str, str | int]:
    return {"cluster": batch.cluster, "batch": batch.batch_ts}
