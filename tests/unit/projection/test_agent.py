"""The agent of the projection: what goes to the sinks, to the table of versions, and to the dead letters."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

import streams
from millstream.settings import override_settings
from schemas.events import CREATED, DELETED, TOPIC, UPDATED
from streams.testing import TopologyTest
from tests.support.projection import record
from tests.unit.events.events import event, uuid


@pytest.fixture
async def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TopologyTest]:
    monkeypatch.delitem(streams.__dict__, "app", raising=False)
    monkeypatch.delitem(sys.modules, "streams.projection", raising=False)
    with override_settings(
        data_dir=tmp_path,
        streams=["streams.projection"],
        postgres_url="postgresql://u@127.0.0.1:9/d",
        clickhouse_url="http://u:p@127.0.0.1:9?database=d",
        projection_clickhouse=True,
    ):
        async with TopologyTest(streams.app) as test:
            yield test
    for name in ("app", "projection"):
        streams.__dict__.pop(name, None)
    sys.modules.pop("streams.projection", None)


def gaps() -> float:
    return REGISTRY.get_sample_value("millstream_projection_gaps_total") or 0.0


async def test_versions_follow_the_sinks_and_poison_goes_to_the_dead_letters(kit: TopologyTest) -> None:  # T2, T13, T17
    begun = gaps()
    records: list[Any] = [
        record(event(CREATED, 1), 0),
        record(event(UPDATED, 4), 1),
        record(event(UPDATED, 9), 2, schema_version="v2"),
        record(event(CREATED, 1, 9, 2), 3),
        record(event(CREATED, 1), 4)._replace(value=b"\xff"),
        record(event(CREATED, 1), 5)._replace(value=None),
    ]
    outcome = await kit.send(TOPIC, records=records)
    versions = kit.table("projection_versions")
    assert (versions[uuid(1)], versions[uuid(2)]) == (4, 1)
    assert gaps() - begun == 2 * 2  # versions 2 and 3; the kit runs each chunk twice
    letters = [dict(o.headers)["millstream.dlq.offset"] for o in outcome.dead_letters]
    assert ([o.topic for o in outcome.dead_letters], letters) == ([f"{TOPIC}.dlq"] * 2, [b"4", b"5"])
    postgres, clickhouse = outcome.sunk
    assert postgres.records["_offset"].to_pylist() == [0, 1, 2, 3]  # the refused one is recorded there
    assert clickhouse.records["_offset"].to_pylist() == [0, 1, 3]
    late = [record(event(UPDATED, 3), 6), record(event(DELETED, 6), 7), record(event(UPDATED, 2), 8)]
    assert len((await kit.send(TOPIC, records=late)).changes["projection_versions"]) == 1
    assert versions[uuid(1)] == 6  # a deleted video keeps its version: what comes late is known to be late
    assert (await kit.send(TOPIC, records=late)).changes.get("projection_versions", {}) == {}
