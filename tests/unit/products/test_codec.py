"""Records of `products.staging.rows`: what becomes a row, what goes to the dead-letter topic."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from schemas.log_records import LogRecord
from schemas.products.codec import MARK, ROW, Mark, StagingCodec, headers_of, key_of, mark_value, row_value

ROW_1 = {
    "style_brand_no": "B",
    "style_no": "1",
    "price": Decimal("398.10"),
    "name": None,
    "src_updated_at": datetime.max,
}


def record(offset: int, key: bytes, value: bytes | None, headers: list[tuple[str, bytes]]) -> LogRecord:
    return LogRecord(offset, 0, 0, key, value, headers)


def test_rows_deletes_and_marks_become_one_table() -> None:
    at = datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
    decoded = StagingCodec().decode(
        [
            record(3, key_of("B", "1"), row_value(ROW_1), headers_of(ROW, "r")),
            record(4, key_of("B#", "é"), None, []),
            record(7, b"", mark_value(Mark(2, at, "B#", "é")), headers_of(MARK, "r")),
            record(8, b"", mark_value(Mark(2)), headers_of(MARK, "r")),
        ]
    )
    assert decoded.rejected == []
    assert decoded.table.select(["op", "brand_code", "sku", "price", "at", "run", "row", "_offset"]).to_pylist() == [
        dict(zip(("op", "brand_code", "sku", "price", "at", "run", "row", "_offset"), values, strict=True))
        for values in (
            ("upsert", "B", "1", "398.10", None, "r", None, 3),
            ("delete", "B#", "é", None, None, None, None, 4),
            ("mark", "B#", "é", None, at, "r", 2, 7),
            ("mark", "", "", None, None, "r", 2, 8),
        )
    ]


@pytest.mark.parametrize(
    ("key", "value", "headers", "reason"),
    [
        (b"", b"", [], "JSONDecodeError"),
        (b"", b"[]", [], "not an object"),
        (b"", b"\xff", [], "UnicodeDecodeError"),
        (b"", b"[" * 100_000, [], "RecursionError"),
        (b"", b'{"style_brand_no":"B"}', [], "field style_no: required"),
        (b"", b'{"style_brand_no":"B","style_no":"1","price":1.5}', [], "is the float 1.5"),
        (b"B#1", None, [], "JSONDecodeError"),
        (b'["B"]', None, [], 'must be ["brand","sku"]'),
        (b'["B",""]', None, [], 'must be ["brand","sku"]'),
        (b"", b"{}", [("millstream.kind", MARK)], "ValidationError"),
        (b"", row_value(ROW_1), [("millstream.run", b"\xff")], "UnicodeDecodeError"),
    ],
)
def test_a_bad_record_is_rejected_with_its_reason_and_takes_no_neighbour_with_it(
    key: bytes, value: bytes | None, headers: list[tuple[str, bytes]], reason: str
) -> None:  # T13, T60, T64
    good = record(0, b"", row_value(ROW_1), [])
    decoded = StagingCodec().decode([good, record(1, key, value, headers), good._replace(offset=2)])
    assert decoded.table["_offset"].to_pylist() == [0, 2]
    assert [r.record.offset for r in decoded.rejected] == [1]
    assert reason in decoded.rejected[0].reason
