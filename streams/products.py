"""Products: rows of the staging table into Postgres. Run it with MILLSTREAM_STREAMS=streams.products.

The table `products_watermark` follows the watermark in Postgres: it is changed after the sink holds the chunk, and
becomes durable with the chunk's commit (T2).
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from datetime import UTC, datetime
from typing import Any

from millstream import metrics
from schemas.chunk import Receipt
from schemas.products import TOPIC
from schemas.products.codec import StagingCodec
from sinks.factory import postgres_config
from sinks.postgres import PostgresStream, Products
from streams import app

# One partition: the rows of a product keep their order, and the watermark has one owner (T72).
rows = app.chunk_topic(TOPIC, codec=StagingCodec(), partitions=1)
products_watermark = app.Table("products_watermark", default=int)
products = app.sinks(PostgresStream(postgres_config(app.settings), Products(), "products"))


@app.agent(rows, tables=[products_watermark])
async def load(chunks: Any) -> None:
    """Rows into products."""
    async for chunk in chunks:
        follow(products_watermark, await products.write(chunk))


def known() -> list[dict[str, Any]]:
    """The watermark as the table has it, for metrics and the status page: also before the first chunk."""
    found = [int(value) for _, value in products_watermark.data.scan(b'"at"')]
    for at in found:
        metrics.WATERMARK.labels(metrics.stream_label(TOPIC)).set(at / 1e6)
    return [{"stream": TOPIC, "at": datetime.fromtimestamp(at / 1e6, UTC).isoformat()} for at in found]


app.observer.sections["watermarks"] = known


def follow(watermark: MutableMapping[str, int], receipts: Iterable[Receipt]) -> None:
    """Set `at` to the watermark that the sink holds, in microseconds since 1970."""
    for receipt in receipts:
        if (at := int(receipt.details.get("watermark", 0))) > watermark["at"]:
            watermark["at"] = at
