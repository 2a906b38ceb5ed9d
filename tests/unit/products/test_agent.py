"""The agent of the products: what goes to the sink, to the dead letters, and to its table."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import streams
from millstream.settings import override_settings
from schemas.chunk import Receipt
from schemas.log_records import LogRecord
from schemas.products import TOPIC
from schemas.products.codec import key_of, row_value
from streams.testing import TopologyTest


@pytest.fixture
async def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TopologyTest]:
    monkeypatch.delitem(streams.__dict__, "app", raising=False)
    monkeypatch.delitem(sys.modules, "streams.products", raising=False)
    with override_settings(
        data_dir=tmp_path, streams=["streams.products"], postgres_url="postgresql://u@127.0.0.1:9/d"
    ):
        async with TopologyTest(streams.app) as test:
            yield test
    for name in ("app", "products"):
        streams.__dict__.pop(name, None)
    sys.modules.pop("streams.products", None)


async def test_good_rows_go_to_the_sink_and_bad_ones_to_the_dead_letters(kit: TopologyTest) -> None:  # T64
    rows: list[dict[str, Any]] = [{"price": "1"}, {"price": 1.5}, {"price": "2"}]
    records = [
        LogRecord(n, 0, 0, key_of("B", str(n)), row_value(row | {"style_brand_no": "B", "style_no": str(n)}), [])
        for n, row in enumerate(rows)
    ]
    outcome = await kit.send(TOPIC, records=records)
    assert [o.topic for o in outcome.dead_letters] == [f"{TOPIC}.dlq"]
    assert b"field price: is the float 1.5" in dict(outcome.dead_letters[0].headers)["millstream.dlq.reason"]
    assert outcome.sunk[0].records["sku"].to_pylist() == ["0", "2"]


async def test_its_table_follows_the_watermark_of_the_sink_and_never_goes_back(kit: TopologyTest) -> None:  # T2, T72
    watermark: defaultdict[str, int] = defaultdict(int)
    follow = sys.modules["streams.products"].follow
    for details, expected in (({}, 0), ({"watermark": "7"}, 7), ({"watermark": "5"}, 7), ({}, 7)):
        follow(watermark, [Receipt("products", 1, details=details)])
        assert watermark["at"] == expected
