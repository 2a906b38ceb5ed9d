"""Who may write a log's rows, and what its rows are called: our own small table in the sink.

Fence (design, hole a): an owner records its generation before its first insert, and each insert carries the condition
that no higher one is recorded. A worker that was paused past its session and wakes up writes 0 rows.

Log identity (design, hole b): rows carry `_topic, _partition, _offset`, and a topic made anew under its old name, or
read again after `millstream reset`, repeats offsets. So `_topic` holds a *label*: the topic's name for the first log
(topic id, epoch) that this database saw under it, and `name@<topic id>.<epoch>` for every later one.
"""

from __future__ import annotations

from dataclasses import dataclass

from millstream.errors import IdentityMismatchError, RetryableSinkError, SinkError
from millstream.failpoints import declare, failpoint
from millstream.logs import get_logger
from schemas.chunk import ChunkId
from sinks.clickhouse.client import Client, Parameters
from sinks.clickhouse.schema import FENCE, quoted, statement

log = get_logger(__name__)

AFTER = declare("clickhouse.fence.after", "the owner's generation is recorded, nothing inserted yet")


@dataclass(frozen=True, slots=True)
class _Held:
    generation: int
    label: str


class Fence:
    """The fence table of one database, and what this process recorded in it."""

    def __init__(self, client: Client, database: str) -> None:
        self._client, self._database = client, quoted(database)
        self._held: dict[tuple[str, int, int], _Held] = {}

    async def enter(self, chunk: ChunkId) -> str:
        """Record the chunk's generation once, and return the label of its log.

        Raises SinkError if a higher generation is on record: this worker lost the partition.
        """
        key = (chunk.topic_id, chunk.epoch, chunk.partition)
        held = self._held.get(key)
        if held is not None and held.generation > chunk.generation:
            raise self.lost(chunk, held.generation)
        if held is None or held.generation < chunk.generation:
            label = held.label if held else await self._label(chunk)
            await self._client.run(
                statement("fence_record", database=self._database),
                {**_log(chunk), "topic": chunk.topic, "label": label, "generation": chunk.generation},
                purpose=f"record generation {chunk.generation} of {chunk.topic}[{chunk.partition}]",
            )
            failpoint(AFTER)
            logs, highest = await self._read(chunk)
            others = logs.get(label, set()) - {(chunk.topic_id, chunk.epoch)}
            if others:
                raise IdentityMismatchError(
                    f"ClickHouse {self._client.url}: rows with _topic = {label!r} belong to two logs:"
                    f" {_named({(chunk.topic_id, chunk.epoch)})} and {_named(others)}; both began here at the same"
                    f" moment. Delete the one that is gone from {FENCE} (ALTER TABLE … DELETE) and start again"
                )
            if highest > chunk.generation:
                raise self.lost(chunk, highest)
            if highest < chunk.generation:
                raise RetryableSinkError(
                    f"ClickHouse {self._client.url}: acknowledged generation {chunk.generation} of {chunk.topic}"
                    f"[{chunk.partition}] and does not have it in {FENCE}"
                )
            held = self._held[key] = _Held(chunk.generation, label)
        return held.label

    async def verify(self, chunk: ChunkId) -> None:
        """Look again, in the sink. Raises SinkError if a higher generation is on record by now."""
        _, highest = await self._read(chunk)
        if highest > chunk.generation:
            raise self.lost(chunk, highest)

    async def label_of(self, topic_id: str, epoch: int, partition: int) -> str | None:
        """The label of a log's rows; None if no row of it was ever written."""
        rows = await self._client.rows(
            statement("fence_labels", database=self._database),
            {"topic_id": topic_id, "epoch": epoch, "partition": partition},
            purpose=f"read {FENCE}",
        )
        return str(rows[0][0]) if rows else None

    def lost(self, chunk: ChunkId, highest: int | None = None) -> SinkError:
        """The error of an owner that was overtaken."""
        by = f"generation {highest}" if highest is not None else "a higher generation"
        return SinkError(
            f"ClickHouse {self._client.url}: this worker lost {chunk.topic}[{chunk.partition}]: {by} is on record, it"
            f" has {chunk.generation}; nothing was written. If no other worker runs, the consumer group was made anew:"
            " `millstream reset` raises the epoch"
        )

    def parameters(self, chunk: ChunkId) -> Parameters:
        """What the insert's condition is bound to."""
        return {**{f"fence_{k}": v for k, v in _log(chunk).items()}, "fence_generation": chunk.generation}

    async def _label(self, chunk: ChunkId) -> str:
        logs, _ = await self._read(chunk)
        own = (chunk.topic_id, chunk.epoch)
        for label, seen in logs.items():
            if own in seen:
                return label
        if not logs:
            return chunk.topic
        label = f"{chunk.topic}@{chunk.topic_id}.{chunk.epoch}"
        log.warning(
            "clickhouse_log_identity",
            topic=chunk.topic,
            label=label,
            description="the topic was made anew or reset: its rows get a _topic of their own",
        )
        return label

    async def _read(self, chunk: ChunkId) -> tuple[dict[str, set[tuple[str, int]]], int]:
        """Label -> logs (topic id, epoch) recorded under it, and the highest generation of the chunk's own log."""
        rows = await self._client.rows(
            statement("fence_read", database=self._database),
            {**_log(chunk), "topic": chunk.topic},
            purpose=f"read {FENCE}",
        )
        logs = {str(label): {(str(t), int(e)) for t, e in seen} for label, seen, _ in rows}
        return logs, max((int(generation) for *_, generation in rows), default=0)


def _log(chunk: ChunkId) -> dict[str, str | int]:
    return {"topic_id": chunk.topic_id, "epoch": chunk.epoch, "partition": chunk.partition}


def _named(logs: set[tuple[str, int]]) -> str:
    return ", ".join(f"topic id {topic_id} epoch {epoch}" for topic_id, epoch in sorted(logs))
