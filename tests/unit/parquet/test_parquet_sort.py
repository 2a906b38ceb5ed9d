"""Sorted batches: parts sorted when written, merged by key ranges."""

import asyncio
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sinks.parquet import ParquetBatches, ParquetConfig, merge, parts
from tests.integration.parquet.data import BATCH, INSTANCE, RUN, SLUG, between, chunk

ROWS = st.builds(
    lambda db, key, size: {"db": db, "key": key, "rdb_size": size},
    st.sampled_from([0, 1, 15]),
    st.one_of(st.binary(max_size=3), st.sampled_from([b"", b"\x00", b"\x7f", b"\x80", b"\xff", b"k" * 300])),
    st.integers(0, 9),
)


def published(directory: Path, chunks: list[list], sort: bool = True, write_sort: bool | None = None) -> pq.ParquetFile:
    """Feed a whole batch and open its file."""
    sink = ParquetBatches(ParquetConfig(directory, sort=sort))
    writer = ParquetBatches(ParquetConfig(directory, sort=sort if write_sort is None else write_sort))
    where = between(0, len(chunks) + 1)

    async def feed() -> None:
        await sink.open_batch(RUN)
        for at, rows in enumerate(chunks, 1):
            await (writer if at % 2 else sink).write_chunk(chunk(at, at, rows))
        await sink.finalize_instance(RUN, where)
        await sink.finalize_batch(BATCH, {INSTANCE: (RUN, where)})

    asyncio.run(feed())
    return pq.ParquetFile(directory / "prod" / SLUG / "127.0.0.1-6379.parquet")


def rows_of(file: pq.ParquetFile) -> list[tuple]:
    return [(r["db"], r["key"], r["rdb_size"]) for r in file.read(["db", "key", "rdb_size"]).to_pylist()]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds so small that a few rows make several batches, ranges, rounds and row groups."""
    monkeypatch.setattr(parts, "BATCH_ROWS", 2)
    monkeypatch.setattr(merge, "RANGE_ROWS", 3)
    monkeypatch.setattr(merge, "ROW_GROUP_ROWS", 5)
    monkeypatch.setattr(merge, "FAN_IN", 3)


@pytest.mark.usefixtures("small")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(ROWS, max_size=12), max_size=9), st.booleans())
def test_a_sorted_file_holds_exactly_the_rows_by_db_and_key_as_unsigned_bytes(
    chunks: list[list], unsorted_parts: bool
) -> None:  # T34, T41
    # Every second part may have been written before sorting was turned on.
    with tempfile.TemporaryDirectory() as directory:
        file = published(Path(directory), chunks, write_sort=not unsorted_parts)
        found, expected = rows_of(file), [(r["db"], r["key"], r["rdb_size"]) for c in chunks for r in c]
    assert [f[:2] for f in found] == sorted(e[:2] for e in expected)
    assert sorted(found) == sorted(expected)


@pytest.mark.usefixtures("small")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(ROWS, max_size=12), max_size=5), st.booleans())
def test_an_unsorted_file_keeps_the_order_of_the_log(chunks: list[list], sorted_parts: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        found = rows_of(published(Path(directory), chunks, sort=False, write_sort=sorted_parts))
    expected = [(r["db"], r["key"], r["rdb_size"]) for c in chunks for r in c]
    assert sorted(found) == sorted(expected)
    if not sorted_parts:
        assert found == expected


def test_the_footer_names_the_sorting_columns_only_if_sorted(tmp_path: Path) -> None:
    one = [b"b", b"a"]
    for sort, columns in ((True, [3, 4]), (False, [])):
        file = published(tmp_path / str(sort), [one], sort=sort)
        assert [c.column_index for c in file.metadata.row_group(0).sorting_columns] == columns


def test_the_same_key_in_two_dbs_or_twice_stays_two_rows(tmp_path: Path) -> None:  # T41
    twice = [{"db": 1, "key": b"k"}, {"db": 0, "key": b"k"}, {"db": 1, "key": b"k"}]
    assert [r[0] for r in rows_of(published(tmp_path, [twice]))] == [0, 1, 1]


def test_large_keys_close_batches_and_row_groups_early(tmp_path: Path) -> None:  # T34
    keys = [bytes([i]) + b"x" * 1_000_000 for i in range(40)]
    file = published(tmp_path, [keys[20:], keys[:20]])
    assert file.metadata.num_row_groups == 2
    assert [r[1] for r in rows_of(file)] == keys


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", [3, 4, 5, 11])
def test_more_parts_than_may_be_open_at_once_are_merged_in_rounds(tmp_path: Path, count: int) -> None:
    chunks = [[b"%02d" % (n * 7 % 50 + i) for i in range(4)] for n in range(count)]
    file = published(tmp_path, chunks)
    assert [r[1] for r in rows_of(file)] == sorted(k for c in chunks for k in c)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["127.0.0.1-6379.parquet"]


@pytest.mark.parametrize(("compression", "named"), [("zstd", "ZSTD"), ("snappy", "SNAPPY"), ("none", "UNCOMPRESSED")])
def test_the_compression_is_the_one_asked_for(tmp_path: Path, compression, named: str) -> None:  # RP-3, RP-41
    sink = ParquetBatches(ParquetConfig(tmp_path, compression))
    asyncio.run(sink.open_batch(RUN))
    asyncio.run(sink.write_chunk(chunk(1, 1, [b"a"])))
    asyncio.run(sink.finalize_instance(RUN, between(0, 2)))
    (path,) = tmp_path.rglob("*.parquet")
    group = pq.ParquetFile(path).metadata.row_group(0)
    assert {group.column(i).compression for i in range(group.num_columns)} == {named}
