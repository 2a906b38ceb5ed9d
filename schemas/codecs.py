"""Wire codecs: the records of a chunk, decoded all at once into one Arrow table.

Every codec is given the Kafka records of a chunk (objects with `offset, timestamp, key, value, headers`) and returns
the rows of all that can be decoded, with the column `_offset` last, and the others with the reason (they go to the
dead-letter topic). One bad record never takes its neighbours with it (T13).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.json as pj

from millstream.errors import ConfigError
from schemas.log_records import join, keys_of, values_of

OFFSET = pa.field("_offset", pa.int64(), nullable=False)
KEY = pa.field("_key", pa.binary())


class Rejected(NamedTuple):
    """A record that cannot be decoded."""

    record: Any
    reason: str


class Decoded(NamedTuple):
    """A chunk's rows and what could not be decoded."""

    table: pa.Table
    rejected: list[Rejected]


class Codec(Protocol):
    """How one topic's values become rows."""

    schema: pa.Schema
    rows_of: Callable[[Any], int] | None
    """Rows one record decodes to, found without decoding it; None: always one."""
    is_control: Callable[[Any], bool] | None
    """Whether a record is a control record, which gets a chunk of its own; None: the topic has none."""

    def decode(self, records: Sequence[Any]) -> Decoded:
        """Decode a chunk. Blocking; releases the GIL for most of it. Never raises for bad records."""


class _RowCodec:
    """One record per message; a subclass decodes many values at once, or says which one is bad."""

    rows_of: Callable[[Any], int] | None = None
    is_control: Callable[[Any], bool] | None = None

    def __init__(self, schema: pa.Schema, keys: bool = False) -> None:
        if clash := {"_offset", "_key"} & set(schema.names):
            raise ConfigError(f"schema column {sorted(clash)} is one that the engine adds itself")
        self.values, self.keys = schema, keys
        self.schema = pa.schema([*schema, *([KEY] if keys else []), OFFSET])

    def _many(self, values: list[bytes]) -> pa.Table:
        """All values at once, or ValueError/ArrowInvalid if any of them is bad or not exactly one row."""
        raise NotImplementedError

    def decode(self, records: Sequence[Any]) -> Decoded:
        good, rejected = records, list[Rejected]()
        try:
            table = self._many(values_of(good))
        except _BAD:
            good, rejected = self._sift(records)
            table = self._many(values_of(good))
        if self.keys:
            table = table.append_column(KEY, pa.array(keys_of(good), pa.binary()))
        return Decoded(table.append_column(OFFSET, pa.array(_offsets(good))), rejected)

    def _sift(self, records: Sequence[Any]) -> tuple[Sequence[Any], list[Rejected]]:
        """Find the bad ones by halving: good stretches are decoded whole, so one bad record costs log2(n) decodes."""
        good: list[Sequence[Any]] = []
        bad: list[Rejected] = []
        stack = [records]
        while stack:
            part = stack.pop()
            try:
                self._many(values_of(part))
            except _BAD as exc:
                if len(part) == 1:
                    bad.append(Rejected(part[0], _reason(part[0], exc)))
                else:
                    half = len(part) // 2
                    stack += [part[half:], part[:half]]
            else:
                good.append(part)
        return join(good), bad


class JsonCodec(_RowCodec):
    """One JSON object per message. Unknown fields are ignored, missing ones are null; a field of another type, or null
    in a field declared not nullable, makes the record bad."""

    def _many(self, values: list[bytes]) -> pa.Table:
        if not values:
            return self.values.empty_table()
        joined = b"\n".join(values)
        # Each value must be one object, closed in itself: then no row can hide in, or be made of, its neighbours.
        ends = np.cumsum(np.fromiter(map(len, values), np.int64, len(values)) + 1)
        text = np.frombuffer(joined, np.uint8)
        starts = np.concatenate([[0], ends[:-1]])
        if starts[-1] >= len(text) or (text[starts] != 0x7B).any() or (text[ends - 2] != 0x7D).any():
            values = [v.strip() for v in values]
            if not all(v[:1] == b"{" and v[-1:] == b"}" for v in values):
                raise ValueError("not a JSON object")
            joined = b"\n".join(values)
        table = pj.read_json(
            pa.BufferReader(joined),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(joined) + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=self.values, newlines_in_values=True, unexpected_field_behavior="ignore"
            ),
        )
        if table.num_rows != len(values):
            raise ValueError("not exactly one JSON object")
        return _checked(table, self.values)


class MsgpackCodec(_RowCodec):
    """One MessagePack map per message, with the rules of JsonCodec."""

    def __init__(self, schema: pa.Schema, keys: bool = False) -> None:
        super().__init__(schema, keys)
        self._exact = [(f.name, f.type) for f in schema if _may_round(f.type)]

    def _many(self, values: list[bytes]) -> pa.Table:
        rows = []
        for value in values:
            row = msgspec.msgpack.decode(value)
            if not isinstance(row, dict):
                raise TypeError(f"a MessagePack {type(row).__name__}, not a map")
            for name, kind in self._exact:
                if _rounded(row.get(name), kind):
                    raise TypeError(f"field {name!r} is {row[name]!r}: {kind} would not hold it exactly")
            rows.append(row)
        return _checked(pa.Table.from_pylist(rows, schema=self.values), self.values)


class ArrowCodec:
    """Many rows per message: each value is an Arrow IPC stream of the declared schema."""

    is_control: Callable[[Any], bool] | None = None

    def __init__(self, schema: pa.Schema) -> None:
        self.values = schema
        self.schema = pa.schema([*schema, OFFSET])
        self.rows_of: Callable[[Any], int] | None = self._count

    def _count(self, record: Any) -> int:
        try:
            return sum(b.num_rows for b in pa.ipc.open_stream(record.value or b""))
        except _BAD:
            return 1

    def read(self, record: Any) -> pa.Table:
        """The rows of one message. Raises ArrowInvalid, TypeError or ValueError."""
        table = pa.ipc.open_stream(record.value or b"").read_all()
        if not table.schema.equals(self.values):
            table = table.select(self.values.names).cast(self.values)
        table.validate()
        _check_nulls(table, self.values)
        return table

    def decode(self, records: Sequence[Any]) -> Decoded:
        """Concatenate the messages' rows, without a copy."""
        tables, offsets, rejected = [], [], list[Rejected]()
        for record in records:
            try:
                table = self.read(record)
            except _BAD as exc:
                rejected.append(Rejected(record, _reason(record, exc)))
            else:
                tables.append(table)
                offsets.append((record.offset, table.num_rows))
        whole = pa.concat_tables(tables) if tables else self.values.empty_table()
        column = np.repeat([o for o, _ in offsets], [n for _, n in offsets]) if offsets else np.empty(0, np.int64)
        return Decoded(whole.append_column(OFFSET, pa.array(column, pa.int64())), rejected)


def table_of(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Rows of values, in the order of the schema's fields, as a table. Raises ArrowInvalid for a misfit."""
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    arrays = [array_of(column, f.type) for column, f in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def array_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Python values as an Arrow array, as `pa.array` makes it; times may be given as integers of their unit.

    Texts, bytes and integers are put together here. `pa.array` imports pandas when it is first called, if there is one:
    0.9 CPU-seconds and 60 MiB in the middle of a worker's first chunk. Raises ArrowInvalid, ValueError for a misfit.
    """
    count, types = len(values), set(map(type, values))
    nulls = type(None) in types
    types.discard(type(None))
    if not types:
        return pa.nulls(count, kind)
    valid = _bitmap(values) if nulls else None
    if types in ({str}, {bytes}) and kind == _BUILT[types == {str}]:
        cells = [v or b"" for v in values] if types == {bytes} else [(v or "").encode() for v in values]
        ends = np.zeros(count + 1, np.int64)
        np.cumsum(np.fromiter(map(len, cells), np.int64, count), out=ends[1:])
        if ends[-1] < 1 << 31:
            offsets = pa.py_buffer(ends.astype(np.int32))
            return pa.Array.from_buffers(kind, count, [valid, offsets, pa.py_buffer(b"".join(cells))])
    if types == {int} and (kind == pa.int64() or pa.types.is_timestamp(kind)):
        numbers = np.fromiter((v or 0 for v in values) if nulls else values, np.int64, count)
        return pa.Array.from_buffers(kind, count, [valid, pa.py_buffer(numbers)])
    return pa.array(values, kind)


_BUILT = (pa.binary(), pa.string())


def _bitmap(values: Sequence[Any]) -> pa.Buffer:
    present = np.fromiter((v is not None for v in values), np.bool_, len(values))
    return pa.py_buffer(np.packbits(present, bitorder="little"))


def make_codec(payload: str, schema: pa.Schema, keys: bool = False) -> Codec:
    """The codec named `json`, `msgpack` or `arrow`."""
    if payload == "arrow":
        if keys:
            raise ConfigError("payload 'arrow' has many rows per record: put the key into the rows")
        return ArrowCodec(schema)
    try:
        return {"json": JsonCodec, "msgpack": MsgpackCodec}[payload](schema, keys)
    except KeyError:
        raise ConfigError(f"payload {payload!r}: must be one of json, msgpack, arrow") from None


_BAD = (ValueError, TypeError, OverflowError, KeyError, OSError, pa.ArrowException, msgspec.MsgspecError)


def _check_nulls(table: pa.Table, schema: pa.Schema) -> None:
    for f in schema:
        if not f.nullable and table.column(f.name).null_count:
            raise ValueError(f"field {f.name!r} is missing or null")


def _checked(table: pa.Table, schema: pa.Schema) -> pa.Table:
    _check_nulls(table, schema)
    table = table.select(schema.names).cast(schema)
    table.validate(full=True)  # pyarrow.json lets invalid UTF-8 through
    return table


def _may_round(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_temporal(kind) or any(map(_may_round, _children(kind)))


def _children(kind: pa.DataType) -> list[pa.DataType]:
    return [kind.field(i).type for i in range(kind.num_fields)] if pa.types.is_nested(kind) else []


def _rounded(value: Any, kind: pa.DataType) -> bool:
    """Whether Arrow would cut something off this value, silently: 1.5 in an integer, nanoseconds of a time (T36)."""
    if isinstance(value, float):
        return bool(pa.types.is_integer(kind) or pa.types.is_temporal(kind))
    if isinstance(value, datetime):  # msgspec has rounded a MessagePack timestamp to microseconds already
        return bool(pa.types.is_timestamp(kind) and kind.unit == "ns")
    if isinstance(value, list | tuple):
        return any(_rounded(v, child) for v in value for child in _children(kind))
    if isinstance(value, dict) and pa.types.is_struct(kind):
        return any(_rounded(value.get(f.name), f.type) for f in kind)
    return False


def _offsets(records: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    if not len(records):
        return np.empty(0, np.int64)
    first, last = records[0].offset, records[-1].offset
    if last - first + 1 == len(records):
        return np.arange(first, last + 1, dtype=np.int64)
    return np.fromiter((r.offset for r in records), np.int64, len(records))


def _reason(record: Any, exc: BaseException) -> str:
    if record.value is None:
        return "null value (tombstone) on a topic of records"
    text = " ".join(str(exc).split())
    return "".join(itertools.islice(f"{type(exc).__name__}: {text}", 500))
