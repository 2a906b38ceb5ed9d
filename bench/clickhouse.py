"""The table in embedded ClickHouse: made, filled without millstream, and checked.

python -m bench.clickhouse create|alone|check     in the directory BENCH_SINK, by one process at a time
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import pyarrow as pa
from chdb.session import Session

from bench.clock import Clock
from bench.data import PARTITIONS, arrow_batches
from bench.loops import CHUNK_ROWS
from sinks.clickhouse.client import INSERT_SETTINGS
from sinks.clickhouse.embedded import insert_from_body
from sinks.clickhouse.encode import encode_stream, to_ipc
from sinks.clickhouse.schema import literal

DATABASE, TABLE = "bench", "rows"
_COLUMNS = {
    "id": "Int64",
    "instance": "String",
    "ts": "Int64",
    "price": "Float64",
    "qty": "Int64",
    "side": "String",
    "symbol": "String",
    "venue": "String",
    "src": "String",
    "_offset": "Int64",
    "_topic": "LowCardinality(String)",
    "_partition": "Int32",
}


def url(directory: str) -> str:
    """The sink's URL."""
    return f"chdb://{directory}?database={DATABASE}"


def create(session: Session) -> None:
    """The table, as a user of ClickHouseStream declares it."""
    session.query(f"CREATE DATABASE {DATABASE}")
    columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
    session.query(
        f"CREATE TABLE {DATABASE}.{TABLE} ({columns}) ENGINE = MergeTree ORDER BY (_topic, _partition, _offset)"
        " SETTINGS non_replicated_deduplication_window = 1000"
    )


def _chunks(total: int) -> Iterator[tuple[int, pa.Table]]:
    """(partition, rows): the batches of the Arrow topic as a chunk brings them, in memory."""
    batches = list(arrow_batches(total))
    each = -(-CHUNK_ROWS // batches[0].num_rows)
    for partition in range(PARTITIONS):
        own = batches[partition::PARTITIONS]
        for at in range(0, len(own), each):
            table = pa.Table.from_batches(own[at : at + each])
            offsets = [at + n for n, batch in enumerate(own[at : at + each]) for _ in range(batch.num_rows)]
            yield partition, table.append_column("_offset", pa.array(offsets, pa.int64()))


def alone(session: Session) -> None:
    """Inserts only: the same rows, settings and format as the sink's, without topic, fence or token."""
    clock = Clock.from_env()
    chunks = list(_chunks(clock.total))
    create(session)
    settings = {k: v for k, v in INSERT_SETTINGS.items() if k != "wait_end_of_query"}
    clock.start()
    for partition, rows in chunks:
        table = encode_stream(rows, "topic", partition)
        names = ", ".join(table.column_names)
        structure = literal(", ".join(f"{name} {_COLUMNS[name]}" for name in table.column_names))
        sql = f"INSERT INTO {DATABASE}.{TABLE} ({names})\nSELECT {names} FROM input({structure})\nFORMAT ArrowStream"
        insert_from_body(session, sql, to_ipc(table), {}, settings)
        clock.add(table.num_rows)


def check(session: Session) -> None:
    """Print per partition: rows, distinct offsets, first and last offset, fewest and most rows of an offset."""
    answer = session.query(
        "SELECT _partition, sum(n), count(), min(_offset), max(_offset), min(n), max(n) FROM"
        f" (SELECT _partition, _offset, count() AS n FROM {DATABASE}.{TABLE} GROUP BY 1, 2)"
        " GROUP BY 1 ORDER BY 1 SETTINGS output_format_json_quote_64bit_integers = 0",
        "JSONCompact",
    )
    print(json.dumps(json.loads(answer.bytes())["data"]))


if __name__ == "__main__":
    opened = Session(os.environ["BENCH_SINK"])
    {"create": create, "alone": alone, "check": check}[sys.argv[1]](opened)
    opened.close()
