"""Records of `products.staging.rows`, and a chunk of them as one Arrow table.

A row is a JSON object of staging columns; numbers with decimals are text. A delete is a record without a value. A
*mark* ends each batch of the feeder: all rows before it are what the source held up to a position.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from schemas.codecs import OFFSET, Decoded, Rejected, table_of
from schemas.products.normalise import BadRowError, normalise

KIND = "millstream.kind"
RUN = "millstream.run"
ROW, MARK = b"row", b"mark"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UPSERT, DELETE, MARKED = "upsert", "delete", "mark"

SCHEMA = pa.schema(
    [
        ("op", pa.string()),
        ("brand_code", pa.string()),
        ("sku", pa.string()),
        ("name", pa.string()),
        ("price", pa.string()),
        ("tags", pa.string()),
        ("attributes", pa.string()),
        ("description", pa.string()),
        ("image_url", pa.string()),
        ("on_sale", pa.bool_()),
        ("data_version", pa.string()),
        ("warnings", pa.int32()),
        ("at", pa.timestamp("us", "UTC")),
        ("run", pa.string()),
        ("row", pa.int64()),
    ]
)
"""`op` is upsert, delete or mark. `run` is the feeder's; null: somebody else's. A mark has `at`,
brand_code and sku (the position) and `row`."""
_EMPTY = (None,) * 8


class Mark(msgspec.Struct, frozen=True):
    """The end of a batch."""

    row: int
    """Rows of the run so far."""
    at: datetime | None = None
    """With brand and style: how far the source was read in order. None: these rows stand outside of it (T73)."""
    brand: str = ""
    style: str = ""


def headers_of(kind: bytes, run: str) -> list[tuple[str, bytes]]:
    """Headers of the feeder's records."""
    return [(KIND, kind), (RUN, run.encode())]


def key_of(brand: str | None, style: str | None) -> bytes:
    """Key of a row's records: a pair, so that no two products share one (T75)."""
    return json.dumps([brand, style], separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def row_value(row: Mapping[str, Any]) -> bytes:
    """A staging row as it stands in the topic; what is NULL is left out."""
    plain = {name: _plain(value) for name, value in row.items() if value is not None}
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()


def mark_value(mark: Mark) -> bytes:
    """A mark as it stands in the topic."""
    return msgspec.json.encode(mark)


class _Row(NamedTuple):
    op: str
    brand_code: str
    sku: str
    more: tuple[Any, ...] = _EMPTY
    warnings: int = 0
    at: datetime | None = None
    run: str | None = None
    row: int | None = None


class StagingCodec:
    """The engine's codec of that topic. A row that cannot become a product is rejected (T64)."""

    rows_of: Callable[[Any], int] | None = None
    is_control: Callable[[Any], bool] | None = None

    def __init__(self) -> None:
        self.values = SCHEMA
        self.schema = pa.schema([*SCHEMA, OFFSET])

    def decode(self, records: Sequence[Any]) -> Decoded:
        """All rows of a chunk. Blocking. Never raises for bad records."""
        rows: list[tuple[Any, ...]] = []
        rejected: list[Rejected] = []
        for record in records:
            try:
                op, brand, sku, more, *rest = _read(record)
            except (ValueError, TypeError, RecursionError, BadRowError, msgspec.MsgspecError) as e:
                rejected.append(Rejected(record, f"{type(e).__name__}: {e}"))
            else:
                rows.append((op, brand, sku, *more, *rest, record.offset))
        return Decoded(table_of(rows, self.schema), rejected)


def _read(record: Any) -> _Row:
    headers = dict(record.headers)
    run = (headers.get(RUN) or b"").decode() or None
    if headers.get(KIND) == MARK:
        mark = msgspec.json.decode(record.value or b"", type=Mark)
        return _Row(MARKED, mark.brand, mark.style, at=mark.at, run=run, row=mark.row)
    if record.value is None:
        pair = json.loads(record.key or b"null")
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) and p for p in pair)):
            raise ValueError('a record without a value deletes a product: its key must be ["brand","sku"]')
        return _Row(DELETE, pair[0], pair[1], run=run)
    row = json.loads(record.value)
    if not isinstance(row, dict):
        raise TypeError(f"a JSON {type(row).__name__}, not an object of columns")
    product, warnings = normalise(row)
    return _Row(UPSERT, product.brand_code, product.sku, product[2:], len(warnings), run=run)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    # A float stays one: the normaliser refuses it by name.
    return value if isinstance(value, str | int | float | list | dict) else str(value)
