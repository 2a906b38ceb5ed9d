"""Where a replay writes: the live projection or one built anew, through the sink that the workers use; or nowhere."""

from __future__ import annotations

import json
from typing import Protocol

from millstream.postgres import Connection
from schemas.chunk import Chunk
from sinks.postgres import PostgresConfig, PostgresStream, VideoProjection, shadow
from sinks.wrapper import SinkGroup
from streams.replay.slices import Held

LIVE = "replay live "
"""What the sinks that write the live projection again are called, to begin with (`millstream.positions`)."""
_NAME = "projection"


class Writer(Protocol):
    """Takes slices, each wholly or not at all."""

    async def write(self, chunk: Chunk, cursor: str) -> dict[str, int]:
        """What became of the events, as VideoProjection tells it."""


class _WithCursor:
    """An `Apply` that also keeps where its source goes on."""

    def __init__(self, apply: VideoProjection) -> None:
        self._apply, self.cursor = apply, ""

    async def check(self, connection: Connection) -> None:
        """See Apply."""
        await self._apply.check(connection)

    async def __call__(self, connection: Connection, chunk: Chunk) -> dict[str, str]:
        """See Apply."""
        return await self._apply(connection, chunk) | ({"cursor": self.cursor} if self.cursor else {})


class SinkWriter:
    """Rows, and how far they go, in one transaction per slice; what may pass is retried."""

    def __init__(self, url: str, prefix: str, plan: str, retry_timeout: float | None) -> None:
        rebuild = prefix != LIVE
        projection = VideoProjection(shadow.SCHEMA) if rebuild else VideoProjection(again=True)
        self.key = f"{prefix}{plan}/{_NAME}"
        self._apply = _WithCursor(projection)
        config = PostgresConfig(url, 2, f"{prefix}{plan}")
        self._group = SinkGroup([PostgresStream(config, self._apply, _NAME)], retry_timeout)

    async def open(self) -> None:
        """Connect and check. Raises ConfigError, SinkError."""
        await self._group.open()

    async def close(self) -> None:
        """Disconnect."""
        await self._group.close()

    async def held(self, connection: Connection) -> dict[int, Held]:
        """How far an earlier life has come: partition -> place."""
        sql = "SELECT partition, topic_id, last, details FROM millstream.positions WHERE sink = $1"
        rows = await connection.fetch(sql, self.key)
        return {
            r["partition"]: Held(r["topic_id"], r["last"], json.loads(r["details"]).get("cursor", "")) for r in rows
        }

    async def forget(self, connection: Connection) -> None:
        """The next replay of this kind begins anew."""
        await connection.execute("DELETE FROM millstream.positions WHERE sink = $1", self.key)

    async def write(self, chunk: Chunk, cursor: str) -> dict[str, int]:
        """See Writer. Raises SinkError."""
        self._apply.cursor = cursor
        (receipt,) = await self._group.write(chunk)
        return {name: int(n) for name, n in receipt.details.items() if name != "cursor"}


class DryWriter:
    """Writes into temporary tables of its session, through the same statements; they end with it."""

    def __init__(self, connection: Connection, *, rebuild: bool) -> None:
        self._connection, self._rebuild = connection, rebuild
        self._apply = VideoProjection(shadow.TEMPORARY, again=not rebuild)

    async def open(self) -> None:
        """Make the tables."""
        await shadow.make_temporary(self._connection)

    async def write(self, chunk: Chunk, cursor: str) -> dict[str, int]:
        """See Writer."""
        async with self._connection.transaction():
            if not self._rebuild:
                videos = sorted({v for v in chunk.records.column("aggregate_id").to_pylist() if v is not None})
                await shadow.seed(self._connection, videos)
            details = await self._apply(self._connection, chunk)
        return {name: int(n) for name, n in details.items() if name not in ("created", "changed")}

    async def diff(self) -> shadow.Diff:
        """What would be changed."""
        if self._rebuild:
            return await shadow.diff(self._connection, shadow.TEMPORARY)
        return await shadow.touched(self._connection)
