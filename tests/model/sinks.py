"""Sinks whose every step is a request: files put if absent, and ClickHouse behind the real inserter and fence."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

from millstream.cluster import TP
from millstream.errors import RetryableSinkError
from schemas.chunk import Chunk, Receipt
from sinks.clickhouse.fence import Fence
from sinks.clickhouse.insert import Block, ChunkInserter, Restriction
from sinks.memory import MemorySink
from tests.model.broker import Broker
from tests.model.kernel import Process

Row = tuple[str, int, int, bytes]
"""Label, partition, offset, value."""


def now(coroutine: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as e:
        return e.value
    raise AssertionError("it waits")


class FileSink:
    """Parquet's rules: one name per chunk, put if absent, compared if present. Written in threads."""

    name = "files"

    def __init__(self, process: Process, disk: MemorySink, broker: Broker) -> None:
        self._process, self._disk, self._broker = process, disk, broker

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def have(self, chunk: Chunk) -> Receipt | None:
        return await self._in_thread("file.have", lambda: now(self._disk.have(chunk)))

    async def write_chunk(self, chunk: Chunk) -> Receipt:
        return await self._in_thread("file.put", lambda: self._put(chunk))

    def _put(self, chunk: Chunk) -> Receipt:
        wanted = (TP(chunk.id.topic, chunk.id.partition), chunk.id.first, chunk.id.last)
        if wanted not in self._broker.planned:
            self._broker.violations.append(f"written, and not on record: {chunk.id}")
        return now(self._disk.write_chunk(chunk))

    async def _in_thread(self, kind: str, effect: Callable[[], Any]) -> Any:
        return await asyncio.to_thread(self._process.call, kind, effect, network=False)


class ClickHouse:
    """The server: rows, tokens, and the fence's table."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.tokens: set[str] = set()
        self.fence: dict[tuple[str, int, int], dict[str, Any]] = {}
        self.swallow = False
        """The next insert spends its token, and its part is lost (hole a)."""

    def insert(self, body: bytes, parameters: Any, token: str) -> int:
        """Conditional on the fence, deduplicated by token, all or nothing."""
        log = tuple(parameters[f"fence_{n}"] for n in ("topic_id", "epoch", "partition"))
        rows: list[Row] = pickle.loads(body)
        if self.fence.get(log, {"generation": 0})["generation"] > parameters["fence_generation"]:
            return 0
        if token not in self.tokens:
            self.tokens.add(token)
            if self.swallow:
                self.swallow = False
                raise RetryableSinkError("the server died between the token and the part")
            self.rows += rows
        return len(rows)

    def record(self, p: Any) -> None:
        """A generation enters the fence."""
        held = self.fence.setdefault((p["topic_id"], p["epoch"], p["partition"]), {"generation": 0})
        held["label"], held["topic"] = p["label"], p["topic"]
        held["generation"] = max(held["generation"], p["generation"])

    def read(self, p: Any) -> list[list[Any]]:
        """Label, logs, generation."""
        return [
            [held["label"], [(t, e)], held["generation"] if (t, e) == (p["topic_id"], p["epoch"]) else 0]
            for (t, e, partition), held in self.fence.items()
            if partition == p["partition"] and (held["topic"] == p["topic"] or t == p["topic_id"])
        ]

    def _within(self, row: Row, p: Any) -> bool:
        return row[:2] == (p["label"], p["partition"]) and p["first"] <= row[2] <= p["last"]

    def count(self, p: Any) -> list[list[int]]:
        return [[sum(self._within(r, p) for r in self.rows)]]

    def delete(self, p: Any) -> None:
        self.rows = [r for r in self.rows if not self._within(r, p)]


class Client:
    """sinks.clickhouse.client.Client."""

    url = "sim"
    concurrent = True

    def __init__(self, process: Process, server: ClickHouse) -> None:
        self._process, self._server = process, server

    async def rows(self, _sql: str, parameters: Any = None, *, purpose: str, slow: bool = False) -> Any:
        serve = self._server.count if purpose.startswith("count") else self._server.read
        return await self._process.acall("ch.read", lambda: serve(parameters))

    async def run(self, _sql: str, parameters: Any = None, *, purpose: str, slow: bool = False) -> None:
        if purpose.startswith("record"):
            await self._process.acall("ch.fence", lambda: self._server.record(parameters))
        elif purpose.startswith("delete"):
            await self._process.acall("ch.delete", lambda: self._server.delete(parameters))
        else:
            assert purpose.startswith("end earlier"), purpose  # inserts that wait here have not begun: none to kill

    async def insert(
        self, _sql: str, body: bytes, parameters: Any, *, token: str, query_id: str, purpose: str
    ) -> int | None:
        return await self._process.acall("ch.insert", lambda: self._server.insert(body, parameters, token))


class ClickHouseSink:
    """The real inserter and fence."""

    name = "clickhouse"

    def __init__(self, process: Process, server: ClickHouse) -> None:
        client: Any = Client(process, server)
        self._inserter = ChunkInserter(self.name, client, Fence(client, "d"), "d", "t")

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def have(self, chunk: Chunk) -> Receipt | None:
        return await self._inserter.have(chunk, Restriction())

    async def write_chunk(self, chunk: Chunk) -> Receipt:
        label = await self._inserter.label(chunk)
        rows = [(label, chunk.id.partition, r["_offset"], r["value"]) for r in chunk.records.to_pylist()]
        return await self._inserter.write(chunk, Block({"v": "Int64"}, pickle.dumps(rows)), Restriction())
