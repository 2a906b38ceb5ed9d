"""How a chunk gets into a table exactly once: the same code for dump batches and for ordinary streams.

The happy path is one insert under the chunk's token, conditional on the fence. Once an outcome is unknown (timeout,
connection cut, 5xx, a chunk from an earlier life), an acknowledgement proves nothing any more: ClickHouse logs the
token before the part becomes visible, so a server that died in between acknowledges the token and holds no row
(notes/sinks.md). From then on the range is counted: what may still run is killed first, then count, then the insert
under the same token, then count again; still short -> AttemptExhaustedError, and only the engine may raise the attempt.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from millstream.errors import AttemptExhaustedError, IdentityMismatchError, SinkError
from millstream.failpoints import declare, failpoint
from millstream.logs import get_logger
from schemas.chunk import Chunk, ChunkId, Receipt
from sinks.clickhouse.client import Client, Parameters
from sinks.clickhouse.fence import Fence
from sinks.clickhouse.schema import literal, quoted, statement

log = get_logger(__name__)

BEFORE = declare("clickhouse.insert.before", "nothing of the chunk was sent")
MID = declare("clickhouse.insert.mid", "the generation is recorded, the insert not sent")
AFTER = declare("clickhouse.insert.after", "the insert was acknowledged, the chunk not reported as written")


@dataclass(frozen=True, slots=True)
class Block:
    """What is inserted for a chunk."""

    columns: dict[str, str]
    """Column -> ClickHouse type, in the order of the body's columns."""
    body: bytes
    """Arrow IPC stream of one record batch."""


async def _holds() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition on inserts beside the fence."""

    condition: str = "1 = 1"
    """Bound to the restriction's parameters."""
    tag: str = ""
    """Part of the query id: all inserts behind one gate share it."""
    verify: Callable[[], Awaitable[None]] = _holds
    """Looks whether the condition still holds, and raises if it does not."""


@dataclass(frozen=True, slots=True)
class Restriction:
    """Narrows a count to the parts of the primary key that the chunk's rows share."""

    condition: str = "1 = 1"
    parameters: tuple[tuple[str, str | int], ...] = ()
    scope: str = ""
    """Part of the token: on a shared topic, rows of several runs may come from one range of offsets."""
    gate: Gate = Gate()


class ChunkInserter:
    """Inserts chunks into one table, and knows which of its outcomes are unknown."""

    def __init__(self, sink: str, client: Client, fence: Fence, database: str, table: str) -> None:
        self._sink, self._client, self._fence = sink, client, fence
        self._database, self._table = quoted(database), f"{quoted(database)}.{quoted(table)}"
        self._target = f"{database}.{table}"
        self._unknown: set[str] = set()

    async def label(self, chunk: Chunk) -> str:
        """Enter the fence, and get the `_topic` of the chunk's rows. Raises SinkError if the partition is lost."""
        return await self._fence.enter(chunk.id)

    async def have(self, chunk: Chunk, restriction: Restriction) -> Receipt | None:
        """The receipt if the range holds exactly the chunk's rows, None if it holds fewer."""
        return self._receipt(chunk) if await self._settled(chunk, restriction) == chunk.rows else None

    async def write(self, chunk: Chunk, block: Block, restriction: Restriction) -> Receipt:
        """Insert the chunk. Raises AttemptExhaustedError, RetryableSinkError, SinkError."""
        key = f"{chunk.id}{restriction.scope}"
        if chunk.rows == 0:
            return self._receipt(chunk)
        unknown = chunk.replayed or key in self._unknown
        self._unknown.add(key)  # until the outcome is known: an error or a cancellation leaves it here
        held = await self._settled(chunk, restriction) if unknown else 0
        if held < chunk.rows:
            if held and chunk.id.attempt:
                # Only a table partitioned finer than a chunk can hold a piece of it: a new token would double it.
                await self._delete(chunk, restriction)
            written = await self._insert(chunk, block, restriction)
            if unknown or written is None:
                await self._confirm(chunk, restriction)
        self._unknown.discard(key)
        return self._receipt(chunk)

    async def count(self, label: str, partition: int, first: int, last: int, restriction: Restriction) -> int:
        """Rows of an offset range (both ends included)."""
        rows = await self._client.rows(
            statement("count_range", table=self._table, restriction=restriction.condition),
            _range(label, partition, first, last, restriction),
            purpose=f"count offsets {first}..{last} of {label}[{partition}] in {self._target}",
            slow=True,
        )
        return int(rows[0][0])

    async def end_all(self, tag: str) -> None:
        """End the inserts behind a gate that still run. What starts from now on must find the gate shut."""
        if self._client.concurrent:
            named = {"prefix": "", "suffix": f"{tag}:{self._target}"}
            await self._client.run(statement("kill"), named, purpose=f"end inserts into {self._target}")

    async def _insert(self, chunk: Chunk, block: Block, restriction: Restriction) -> int | None:
        failpoint(MID)
        columns = ", ".join(map(quoted, block.columns))
        structure = literal(", ".join(f"{quoted(name)} {kind}" for name, kind in block.columns.items()))
        written = await self._client.insert(
            statement(
                "insert",
                table=self._table,
                columns=columns,
                structure=structure,
                database=self._database,
                gate=restriction.gate.condition,
            ),
            block.body,
            {**self._fence.parameters(chunk.id), **dict(restriction.parameters)},
            token=chunk.id.token + restriction.scope,
            query_id=f"{chunk.id.token}:{uuid.uuid4().hex[:8]}{_suffix(restriction)}:{self._target}",
            purpose=f"insert {_named(chunk.id)} into {self._target}",
        )
        failpoint(AFTER)
        if written == 0:
            await restriction.gate.verify()
            raise self._fence.lost(chunk.id)
        if written is not None and written != chunk.rows:
            raise SinkError(f"ClickHouse took {written} of {chunk.rows} rows of {_named(chunk.id)} in {self._target}")
        return written

    async def _confirm(self, chunk: Chunk, restriction: Restriction) -> None:
        held = await self._count_chunk(chunk, restriction)
        if held == chunk.rows:
            return
        # An insert that fence or gate stopped ends here too if the server did not tell how many rows it wrote.
        await restriction.gate.verify()
        await self._fence.verify(chunk.id)
        raise AttemptExhaustedError(
            f"ClickHouse acknowledged the insert of {_named(chunk.id)} into {self._target} under token"
            f" {chunk.id.token}, and holds {held} of its {chunk.rows} rows: the token was spent without its part"
        )

    async def _settled(self, chunk: Chunk, restriction: Restriction) -> int:
        """Rows of the chunk in the table, after everything that could still add some has ended."""
        await self._fence.enter(chunk.id)  # before the kill: what starts after it writes 0 rows
        if self._client.concurrent:
            await self._client.run(
                statement("kill"),
                {"prefix": f"{chunk.id}-", "suffix": f"{_suffix(restriction)}:{self._target}"},
                purpose=f"end earlier inserts of {_named(chunk.id)}",
            )
        return await self._count_chunk(chunk, restriction)

    async def _count_chunk(self, chunk: Chunk, restriction: Restriction) -> int:
        label = await self._fence.enter(chunk.id)
        held = await self.count(label, chunk.id.partition, chunk.id.first, chunk.id.last, restriction)
        if held > chunk.rows:
            raise IdentityMismatchError(
                f"ClickHouse {self._client.url}: {self._target} holds {held} rows of {_named(chunk.id)}, the chunk has"
                f" {chunk.rows}. Something else wrote rows with _topic = {label!r} there; find out what before"
                " deleting any"
            )
        return held

    async def _delete(self, chunk: Chunk, restriction: Restriction) -> None:
        label = await self._fence.enter(chunk.id)
        await self._client.run(
            statement("delete_range", table=self._table, restriction=restriction.condition),
            _range(label, chunk.id.partition, chunk.id.first, chunk.id.last, restriction),
            purpose=f"delete a piece of {_named(chunk.id)}",
            slow=True,
        )
        log.warning("clickhouse_delete_piece", chunk=str(chunk.id), description="rewriting the chunk as a whole")

    def _receipt(self, chunk: Chunk) -> Receipt:
        return Receipt(self._sink, chunk.rows, details={"table": self._target})


def _range(label: str, partition: int, first: int, last: int, restriction: Restriction) -> Parameters:
    return {"label": label, "partition": partition, "first": first, "last": last, **dict(restriction.parameters)}


def _suffix(restriction: Restriction) -> str:
    return f"{restriction.scope}{restriction.gate.tag}"


def _named(chunk: ChunkId) -> str:
    return f"{chunk.topic}[{chunk.partition}] {chunk.first}..{chunk.last}"
