"""A stream of your own: its schema, its table, its sink, its output topic. Run it with

MILLSTREAM_STREAMS=examples.orders MILLSTREAM_APP_ID=orders faust -A streams worker
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from sinks.parquet import ParquetConfig, ParquetStream
from streams import app

SCHEMA = pa.schema([("id", pa.int64()), ("customer", pa.string()), pa.field("cents", pa.int64(), nullable=False)])

orders = app.chunk_topic("orders", schema=SCHEMA, payload="json", partitions=4)
large = app.topic("large-orders", value_serializer="json", partitions=4)
spent = app.Table("spent", default=int)
files = app.sinks(ParquetStream(ParquetConfig(app.settings.data_dir / Path("orders"))))


@app.agent(orders)
async def keep_orders(chunks):
    """Sum what each customer spent, pass large orders on, keep all of them as Parquet."""
    async for chunk in chunks:
        await spent.add(chunk.table["customer"], chunk.table["cents"])
        for row in chunk.table.filter(pc.greater_equal(chunk.table["cents"], 100_000)).to_pylist():
            await large.send(key=row["customer"], value={"id": row["id"], "cents": row["cents"]})
        await files.write(chunk)
