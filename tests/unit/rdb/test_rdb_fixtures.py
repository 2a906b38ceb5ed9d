"""Files written by real servers give the rows that the servers themselves told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.records import WIRE
from sources.rdb import RdbReader, redis_slot
from tests.unit.rdb.rdb_builder import FIXTURES, parse

FILES = sorted(FIXTURES.glob("*.rdb"))


def rows_of(path: Path, **options: Any) -> list[dict[str, Any]]:
    return parse(path.read_bytes(), **options)


def expected(path: Path) -> dict[tuple[int, bytes], dict[str, Any]]:
    rows = json.loads(path.with_suffix(".json").read_text())["rows"]
    return {(row["db"], bytes.fromhex(row["key"])): row for row in rows}


def test_every_supported_server_has_fixtures() -> None:
    servers = {path.name.split("-")[0]: path.read_bytes()[:9] for path in FILES}
    assert servers == {
        "redis6.2": b"REDIS0009",
        "redis7.0": b"REDIS0010",
        "redis8.2": b"REDIS0012",
        "valkey9": b"VALKEY080",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rows_are_what_the_server_told(path: Path) -> None:  # T34 T35 T41
    want = expected(path)
    rows = rows_of(path, slots="redis")
    got = {(row["db"], row["key"]): row for row in rows}
    assert len(rows) == len(got)
    assert got.keys() == want.keys()
    for key, row in want.items():
        told = {name: value for name, value in row.items() if name != "key"}
        if told["rdb_size"] is None:  # a compressed key: the server does not tell its size
            del told["rdb_size"]
        assert {name: got[key][name] for name in told} == told, key


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("buffer_size", [1, 16, 700, 4096])
def test_the_size_of_the_buffer_changes_nothing(path: Path, buffer_size: int) -> None:
    if path.stat().st_size > 10_000 * buffer_size:
        buffer_size *= 10
    for limits in ({}, {"batch_rows": 7}, {"batch_bytes": 100}):
        with path.open("rb") as one, path.open("rb") as other:
            small = RdbReader(one, buffer_size=buffer_size, **limits)
            large = RdbReader(other, **limits)
            for batch, same in zip(small, large, strict=True):
                assert batch.equals(same)
                assert small.position == large.position
            assert small.position == large.position


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_batches_have_the_wire_schema_and_keep_to_their_limits(path: Path) -> None:
    with path.open("rb") as file:
        reader = RdbReader(file, batch_rows=10, batch_bytes=300)
        seen = 0
        for batch in reader:
            assert batch.schema == WIRE
            batch.validate(full=True)
            size = sum(map(len, batch.column("key").to_pylist()))
            assert batch.num_rows <= 10
            assert size <= 300 or batch.num_rows == 1
            seen += batch.num_rows
            assert reader.position.rows == seen
        assert seen == len(expected(path))
        assert reader.position.offset == path.stat().st_size


def test_slots_are_null_unless_asked_for() -> None:
    path = FIXTURES / "valkey9-cluster.rdb"
    for row in rows_of(path):
        assert row["codis_slot"] is None
        assert row["redis_slot"] is None
    for row in rows_of(path, slots="codis"):
        assert 0 <= row["codis_slot"] < 1024
        assert row["redis_slot"] is None


@pytest.mark.parametrize("server", ["redis7.0", "redis8.2", "valkey9"])
def test_slots_are_those_of_cluster_keyslot(server: str) -> None:
    for (_, key), row in expected(FIXTURES / f"{server}-cluster.rdb").items():
        assert redis_slot(key) == row["redis_slot"], key
