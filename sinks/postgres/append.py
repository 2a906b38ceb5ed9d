"""Each row of a chunk appended to a table."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from millstream.errors import ConfigError, SinkError
from millstream.postgres import Connection
from schemas.chunk import Chunk

PROVENANCE = {"_topic": pa.string(), "_partition": pa.int32()}


class Append:
    """Copies rows into `table`, by column name; columns `_topic` and `_partition` are filled if the table has them."""

    def __init__(self, table: str) -> None:
        """`table`: `schema.name`, or a name that the search path finds."""
        self.table = table
        self._schema, _, self._name = table.rpartition(".")
        self._columns: frozenset[str] = frozenset()

    async def check(self, connection: Connection) -> None:
        """Raises ConfigError if the table is not there."""
        rows = await connection.fetch(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
            self.table,
        )
        if not rows:
            raise ConfigError(f"Postgres has no table {self.table!r}: create it, or correct the name")
        self._columns = frozenset(row["attname"] for row in rows)

    async def __call__(self, connection: Connection, chunk: Chunk) -> dict[str, str]:
        """COPY all rows. Raises SinkError for a column that the table lacks."""
        values = {name: chunk.records.column(name) for name in chunk.records.column_names}
        constant = {"_topic": chunk.id.topic, "_partition": chunk.id.partition}
        for name in PROVENANCE.keys() & self._columns - values.keys():
            values[name] = pa.repeat(pa.scalar(constant[name], PROVENANCE[name]), chunk.rows)
        if extra := values.keys() - self._columns - {"_offset"}:
            raise SinkError(f"table {self.table} has no column {min(extra)!r}, and topic {chunk.id.topic} has")
        names = [name for name in values if name in self._columns]
        await connection.copy_records_to_table(
            self._name,
            schema_name=self._schema or None,
            columns=names,
            records=zip(*(_python(values[name]) for name in names), strict=True),
        )
        return {}


def _python(column: pa.ChunkedArray) -> list[object]:
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if (kind := _in_micros(column.type)) is not None:
        column = pc.cast(column, kind, safe=False)
    return column.to_pylist()  # type: ignore[no-any-return]


def _in_micros(kind: pa.DataType) -> pa.DataType | None:
    """Postgres' times are microseconds, as Python's are: one in nanoseconds loses the rest."""
    if getattr(kind, "unit", "") != "ns":
        return None
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us")
