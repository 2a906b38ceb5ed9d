"""The archive: takes the runs of all instances into the sinks, and tells the coordinator what it did.

It keeps no table, so instances spread over all workers (T11). What it has to know after a restart stands elsewhere: in
the sinks (whether a run is open), in the `done` record (counts, and where the run began), and with the coordinator.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

from millstream.errors import BatchRefusedError, RunVoidError
from millstream.logs import get_logger
from schemas.batch import Run
from schemas.codecs import Codec
from schemas.control import (
    Abort,
    Begin,
    Begun,
    Done,
    Fact,
    InstanceDone,
    InstanceFailed,
    Progress,
    Where,
    encode_fact,
    label_of,
    read_body,
)
from schemas.names import batches_topic, records_pattern, shared_records_topic
from schemas.rdb import RdbCodec, RunPart, split
from streams import app
from streams.engine.chunk import Chunk
from streams.engine.sinking import Sinks
from streams.ledger import FACT_PARTITIONS, range_of
from streams.output import output

REMEMBERED = 10_000
"""Runs that a worker remembers as open or refused; about any other one it asks the sinks again."""

log = get_logger(__name__)

codec: Codec = RdbCodec()
shared = app.settings.topic_layout == "shared"
if shared:
    records = app.chunk_topic(shared_records_topic(), codec=codec, partitions=app.settings.shared_topic_partitions)
else:
    # chunk_topic puts the namespace before the pattern
    records = app.chunk_topic(pattern=records_pattern().strip("^$"), codec=codec)
# Made here too: an archive that runs alone writes facts before any coordinator has started.
facts = app.topic(batches_topic(), key_serializer="raw", value_serializer="raw", partitions=FACT_PARTITIONS)


@app.agent(records, tables=())
async def archive(chunks: Any) -> None:
    """Dump records into the sinks."""
    archivist = Archive(output, exclusive=not shared)
    async for chunk in chunks:
        for run, fact in await archivist.take(chunk):
            await facts.send(key=run.batch.key.encode(), value=encode_fact(fact))


class Archive:
    """What the agent does with one chunk."""

    def __init__(self, sinks: Sinks, *, exclusive: bool) -> None:
        self._sinks, self._exclusive = sinks, exclusive
        self._void: OrderedDict[str, str] = OrderedDict()
        """Run id -> why its chunks are skipped; empty text: it is open."""

    async def take(self, chunk: Chunk) -> list[tuple[Run, Fact]]:
        """Write the chunk, and give the facts about it."""
        if chunk.control is not None:
            return await self._control(chunk)
        found: list[tuple[Run, Fact]] = []
        for part in await asyncio.to_thread(split, chunk.records, chunk.table, chunk.rejected):
            if await self._write(chunk, part):
                found.append((part.run, _progress(chunk, part)))
        return found

    # ------------------------------------------------------------------ rows
    async def _write(self, chunk: Chunk, part: RunPart) -> bool:
        """False if the sinks have no use for the run."""
        if part.run.run_id not in self._void:
            # After a restart: sinks that refused the run refuse it again, those that took it still have it.
            await self._open(part.run)
        if self._void[part.run.run_id]:
            return False
        try:
            await self._sinks.write(chunk, part.table, part.run)
        except (BatchRefusedError, RunVoidError) as exc:
            self._remember(part.run, str(exc))
            return False
        return True

    async def _open(self, run: Run) -> str:
        """Open the run in the sinks. Why it cannot be, or nothing."""
        reason = ""
        try:
            await self._sinks.open_batch(run)
        except (BatchRefusedError, RunVoidError) as exc:
            reason = str(exc)
        self._remember(run, reason)
        return reason

    def _remember(self, run: Run, reason: str) -> None:
        if reason:
            log.warning(
                "run_skipped",
                cluster=run.batch.cluster,
                batch=run.batch.rfc3339,
                instance=run.instance,
                run=run.run_id,
                description=reason,
            )
        self._void[run.run_id] = reason
        if len(self._void) > REMEMBERED:
            self._void.popitem(last=False)

    # ------------------------------------------------------------------ control records
    async def _control(self, chunk: Chunk) -> list[tuple[Run, Fact]]:
        record = chunk.control
        assert record is not None
        try:
            label = label_of(record.headers)
            body = read_body(label.kind, record.value)
        except ValueError as exc:
            chunk.reject(record.offset, str(exc))
            return []
        run = label.run
        match body:
            case Begin():
                where = self._where(chunk, begin=record.offset)
                begun = Begun(run=run.run_id, instance=run.instance, instances=body.instances, where=where)
                reason = await self._open(run)
                return [(run, begun), *([(run, _failed(run, reason))] if reason else [])]
            case Done():
                return [(run, await self._done(chunk, run, body))]
            case Abort():
                self._remember(run, f"its feeder gave up: {body.reason}")
                await self._sinks.abort_run(run)
                return [(run, _failed(run, body.reason))]

    async def _done(self, chunk: Chunk, run: Run, body: Done) -> Fact:
        # The chunks of the run end before this chunk's range, which may begin with markers of transactions.
        where = self._where(chunk, body.begin, chunk.id.first)
        try:
            stored = await self._sinks.finalize_instance(run, range_of(where))
        except (BatchRefusedError, RunVoidError) as exc:
            return _failed(run, str(exc))
        finally:
            self._void.pop(run.run_id, None)
        return InstanceDone(
            run=run.run_id,
            instance=run.instance,
            stored=max(stored.values(), default=0),  # all the same: the sink group sees to it
            rows=body.rows,
            messages=body.messages,
            digest=body.digest,
            where=where,
        )

    def _where(self, chunk: Chunk, begin: int, done: int = -1) -> Where:
        i = chunk.id
        return Where(
            topic=i.topic,
            topic_id=i.topic_id,
            epoch=i.epoch,
            partition=i.partition,
            begin=begin,
            done=done,
            exclusive=self._exclusive,
        )


def _progress(chunk: Chunk, part: RunPart) -> Progress:
    return Progress(
        run=part.run.run_id,
        instance=part.run.instance,
        first=chunk.id.first,
        last=chunk.id.last,
        rows=part.table.num_rows,
        dead_letters=part.dead_letters,
        messages=part.messages,
        digest=part.digest,
    )


def _failed(run: Run, reason: str) -> InstanceFailed:
    return InstanceFailed(run=run.run_id, instance=run.instance, reason=reason)
