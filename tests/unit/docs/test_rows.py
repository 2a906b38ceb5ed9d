"""Rows of docs/features.md that no test of a part shows."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from blockbuster import BlockBuster

from millstream.errors import ConfigError
from millstream.settings import Settings
from schemas.batch import Batch, Run, parse_rfc3339
from schemas.chunk import Chunk
from schemas.records import WIRE
from sinks.base import BatchSink
from sinks.factory import create_output, require_output
from sinks.files import ensure_dir
from sinks.parquet import ParquetBatches, ParquetConfig
from sources.rdb import RdbReader
from tests.acceptance.cli import FIXTURES
from tests.integration.parquet.data import BATCH, RUN, SLUG, between, chunk

COLUMNS = [  # RP-20 to RP-33, word by word
    ("cluster", "string", False),
    ("batch", "timestamp[ns, tz=UTC]", False),
    ("instance", "string", False),
    ("db", "int64", False),
    ("key", "binary", False),
    ("type", "string", False),
    ("member_count", "int64", False),
    ("rdb_size", "int64", False),
    ("encoding", "string", False),
    ("expire_at", "timestamp[ms, tz=UTC]", True),
    ("idle_seconds", "int64", True),
    ("freq", "int32", True),
    ("codis_slot", "int32", True),
    ("redis_slot", "int32", True),
]


async def test_two_instances_written_in_turns_become_a_file_each_with_the_fourteen_columns(tmp_path: Path) -> None:
    # RP-20 to RP-33, RP-39, RP-40, RP-45, RP-53, RP-73
    sink = ParquetBatches(ParquetConfig(tmp_path))
    other = Run(BATCH, "127.0.0.1:6380", "c" * 32)
    await sink.open()
    for run in (RUN, other):
        await sink.open_batch(run)
    await sink.write_chunk(chunk(1, 2, [b"a", b"b"], RUN, partition=0))
    await sink.write_chunk(chunk(1, 1, [b"x"], other, partition=1))
    await sink.write_chunk(chunk(3, 3, [b"c"], RUN, partition=0))
    places = {
        RUN.instance: (RUN, between(0, 4)),
        other.instance: (other, dataclasses.replace(between(0, 2), partition=1)),
    }
    assert [await sink.finalize_instance(*place) for place in places.values()] == [3, 1]
    await sink.finalize_batch(BATCH, places)
    found = {path.name: pq.ParquetFile(path) for path in (tmp_path / "prod" / SLUG).iterdir()}
    assert {name: file.read()["key"].to_pylist() for name, file in found.items()} == {
        "127.0.0.1-6379.parquet": [b"a", b"b", b"c"],
        "127.0.0.1-6380.parquet": [b"x"],
    }
    for file in found.values():
        assert [(f.name, str(f.type), f.nullable) for f in file.schema_arrow] == COLUMNS


async def test_the_parquet_sink_does_not_block_the_event_loop(tmp_path: Path, no_blocking: BlockBuster) -> None:
    sink = ParquetBatches(ParquetConfig(tmp_path, sort=True))  # RP-7, RP-49
    await sink.open()
    await sink.open_batch(RUN)
    await sink.write_chunk(chunk(1, 2, [b"b", b"a"]))
    assert await sink.finalize_instance(RUN, between(0, 3)) == 2
    await sink.finalize_batch(BATCH, {RUN.instance: (RUN, between(0, 3))})


def test_a_chunk_knows_its_instance_and_a_batch_is_a_cluster_and_a_time() -> None:  # RU-7, RU-44, RU-70
    assert [f.name for f in dataclasses.fields(Batch)] == ["cluster", "batch_ts"]
    a_chunk: Chunk = chunk(1, 2, [b"k"])
    assert a_chunk.run is not None
    assert (a_chunk.run.batch.cluster, a_chunk.run.batch.batch_ts, a_chunk.run.instance, a_chunk.rows) == (
        "prod", 1691999696123456789, "127.0.0.1:6379", 1,
    )  # fmt: skip


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "America/New_York"])
def test_the_directory_of_a_batch_is_its_time_in_utc_wherever_it_is_made(
    zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # RP-11, RP-16, T24, T30
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        batch = Batch("prod", parse_rfc3339("2026-11-01T01:30:00.123999999-04:00"))
        assert batch.slug == "2026-11-01_05-30-00.123Z"
        assert batch.rfc3339 == "2026-11-01T05:30:00.123999999Z"
        assert Batch.from_key(batch.key) == batch
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, []),
        ({"parquet_dir": "out"}, ["parquet"]),
        ({"clickhouse_url": "http://u@h:8123?database=d"}, ["clickhouse"]),
        ({"parquet_dir": "out", "clickhouse_url": "chdb:///tmp/ch?database=d"}, ["parquet", "clickhouse"]),
    ],
)
def test_the_settings_decide_which_sinks_there_are(given: dict[str, str], names: list[str]) -> None:
    # RU-8, RU-12, RU-21, RP-4, RP-6
    found = create_output(Settings(**given))
    assert [sink.name for sink in found] == names
    assert all(isinstance(sink, BatchSink) for sink in found)
    if names:
        require_output(found)
    else:
        with pytest.raises(ConfigError, match="MILLSTREAM_PARQUET_DIR"):
            require_output(found)


def test_a_directory_is_made_with_every_level_and_again_is_fine(tmp_path: Path) -> None:  # RP-14, RP-19
    for _ in range(2):
        ensure_dir(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_columns_are_compressed_with_zstd_unless_told_otherwise() -> None:  # RP-3, RP-41
    assert Settings().parquet_compression == "zstd"
    (sink,) = create_output(Settings(parquet_dir=Path("out")))
    assert isinstance(sink, ParquetBatches)
    assert sink.config.codec["compression"] == "zstd"


@pytest.mark.parametrize("fixture", sorted(p.stem for p in FIXTURES.glob("*.rdb")))
def test_no_number_of_a_real_dump_is_negative(fixture: str) -> None:  # RP-72
    with (FIXTURES / f"{fixture}.rdb").open("rb") as file:
        table = pa.Table.from_batches(RdbReader(file), schema=WIRE)
    for field in table.schema:
        if pa.types.is_integer(field.type) and table.num_rows:
            assert (pc.min(table[field.name]).as_py() or 0) >= 0


def test_a_million_rows_a_chunk_are_allowed_and_no_more() -> None:  # RU-39
    assert Settings(chunk_max_rows=1_000_000).chunk_max_rows == 1_000_000
    with pytest.raises(ConfigError, match="MILLSTREAM_CHUNK_MAX_ROWS"):
        Settings(chunk_max_rows=1_000_001)
