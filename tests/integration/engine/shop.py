"""The application that the tests run in real workers: `faust -A tests.integration.engine.shop worker`."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from millstream.settings import get_settings
from schemas.chunk import Chunk, Receipt
from streams.engine.app import App

app = App(get_settings())
HOME = Path(os.environ["SHOP_HOME"])
SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False), ("item", pa.string())])


class Files:
    """A file per chunk, with its rows; put there once and never replaced. While `slow` is in HOME, a write lasts."""

    name = "files"

    def _path(self, chunk: Chunk) -> Path:
        return HOME / "sink" / f"{chunk.id.topic}@{chunk.id}.jsonl"

    async def open(self) -> None:
        (HOME / "sink").mkdir(parents=True, exist_ok=True)

    async def have(self, chunk: Chunk) -> Receipt | None:
        return Receipt(self.name, chunk.rows) if await asyncio.to_thread(self._path(chunk).exists) else None

    async def write_chunk(self, chunk: Chunk) -> Receipt:
        lines = [f"{r['_offset']} {r['id']} {r['item']}\n" for r in chunk.records.to_pylist()]
        await asyncio.to_thread(self._write, self._path(chunk), "".join(lines))
        return Receipt(self.name, chunk.rows)

    def _write(self, path: Path, text: str) -> None:
        if (slow := HOME / "slow").exists():
            (HOME / "writing").touch()
            while slow.exists():
                time.sleep(0.02)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(text)
        try:
            os.link(temporary, path)
        except FileExistsError:
            assert path.read_text() == text
        finally:
            temporary.unlink()

    async def close(self) -> None: ...


sinks = app.sinks(Files())
orders = app.chunk_topic("orders", schema=SCHEMA, partitions=2)
totals = app.Table("totals", default=int)
large = app.topic("large", partitions=1, key_serializer="raw", value_serializer="raw")


@app.agent(orders)
async def tally(chunks: Any) -> None:
    """Chunks into the sink, counts into a table, every tenth order passed on."""
    async for chunk in chunks:
        await sinks.write(chunk)
        for row in chunk.table.to_pylist():
            if row["item"] == "returned":
                totals.pop("apples", None)
                continue
            totals[row["item"]] += 1
            if row["id"] % 10 == 0:
                await large.send(key=str(row["id"]).encode(), value=str(totals[row["item"]]).encode())


events = app.topic("events", partitions=2, value_type=int, value_serializer="json")
sums = app.Table("sums", default=int)
seen = app.topic("seen", partitions=1, key_serializer="raw", value_serializer="json")


@app.agent(events)
async def add(stream: Any) -> None:
    """An ordinary agent: one event at a time."""
    async for key, value in stream.items():
        if value == 666 and not (HOME / "forgive").exists():
            raise ValueError("666")
        sums[key.decode()] += value
        await seen.send(key=key, value=sums[key.decode()])


dumps = app.chunk_topic(pattern=r"dump\..*", schema=SCHEMA)


@app.agent(dumps, tables=())
async def archive(chunks: Any) -> None:
    """Every topic of a pattern."""
    async for chunk in chunks:
        await sinks.write(chunk)
