"""Quix Streams -> Parquet, run by bench/.venv: python -m bench.contenders.quix at-least-once|exactly-once values|bytes.

`values`: Quix decodes the JSON, as it does unless told otherwise, and the sink makes columns of dictionaries, as Quix's
own ParquetFormat does (which is not used because it writes the text of the whole item where a record has no key).
`bytes`: Quix passes the bytes on, and the sink decodes a whole batch in one call of pyarrow.json.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
from quixstreams import Application
from quixstreams.sinks import BatchingSink, SinkBatch

from bench.clock import Clock
from bench.data import PARTITIONS, SCHEMA
from bench.loops import CHUNK_ROWS, with_arrow, write

clock = Clock.from_env()


class Timed(Application):  # type: ignore[misc]
    """The clock starts with the assignment."""

    def _on_assign(self, *args: Any) -> None:
        clock.start()
        super()._on_assign(*args)


MODE = sys.argv[2]


class ParquetSink(BatchingSink):  # type: ignore[misc]
    """A file per partition and checkpoint."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.rows = 0

    def write(self, batch: SinkBatch) -> None:
        """The name tells partition and first offset, so a batch that comes again replaces itself."""
        items = list(batch)
        values = [item.value for item in items]
        table = pa.Table.from_pylist(values, SCHEMA) if MODE == "values" else with_arrow(values)
        table = table.append_column("_partition", pa.array([batch.partition] * len(items), pa.int32()))
        table = table.append_column("_offset", pa.array([item.offset for item in items], pa.int64()))
        write(table, self.directory / f"{batch.partition}-{batch.start_offset:012d}.parquet")
        self.rows += len(items)

    def flush(self) -> None:
        """Called by the checkpoint."""
        super().flush()
        rows, self.rows = self.rows, 0
        clock.add(rows)


app = Timed(
    broker_address=os.environ["BENCH_SERVERS"],
    consumer_group=os.environ["MILLSTREAM_APP_ID"],
    auto_offset_reset="earliest",
    processing_guarantee=sys.argv[1],
    commit_every=min(CHUNK_ROWS * PARTITIONS, clock.total),
    commit_interval=5.0,
    consumer_extra_config={"queued.min.messages": 200_000},
    state_dir=os.environ["MILLSTREAM_DATA_DIR"],
    auto_create_topics=False,
    loglevel="WARNING",
)
topic = app.topic(
    os.environ["BENCH_TOPIC"], value_deserializer="json" if MODE == "values" else "bytes", key_deserializer="bytes"
)
app.dataframe(topic).sink(ParquetSink(Path(os.environ["BENCH_SINK"])))
app.run()
