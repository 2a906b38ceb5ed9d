"""An application whose only topics are yet to come: its worker has nothing to fetch at first."""

from __future__ import annotations

from typing import Any

from millstream.settings import get_settings
from streams.engine.app import App
from tests.integration.engine.shop import SCHEMA, Files

app = App(get_settings())
sinks = app.sinks(Files())
later = app.chunk_topic(pattern="later-[0-9]+", schema=SCHEMA)


@app.agent(later)
async def keep(chunks: Any) -> None:
    """Chunks into the sink."""
    async for chunk in chunks:
        await sinks.write(chunk)
