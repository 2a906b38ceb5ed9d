"""Batches: staging tree, merge, publication (RP-11 to RP-74)."""

import asyncio
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import structlog

from millstream import failpoints
from millstream.errors import SinkError
from schemas.batch import Batch, Run
from schemas.records import PARQUET
from sinks.base import BatchSink
from sinks.parquet import ParquetBatches, ParquetConfig, publish
from tests.integration.parquet.data import BATCH, INSTANCE, RUN, SLUG, between, chunk
from tests.unit.parquet.batches import LATER, RUNS, files, write


async def test_a_batch_is_published_as_one_file_per_instance_and_nothing_else(sink: ParquetBatches) -> None:
    kept: BatchSink = sink
    await kept.open()
    await kept.open_batch(RUN)
    directory = sink.config.dir / "prod" / f"tmp_{SLUG}"
    assert list(directory.iterdir()) == []  # RP-43, RP-51
    await write(sink)
    assert list(directory.iterdir()) == []
    assert await kept.finalize_instance(RUN, between(0, 7)) == 3
    assert [p.name for p in directory.iterdir()] == ["127.0.0.1-6379.parquet"]  # RP-46, RP-47
    await kept.finalize_batch(BATCH, RUNS)
    assert files(sink) == {f"prod/{SLUG}/127.0.0.1-6379.parquet"}  # RP-54, RP-58
    file = pq.ParquetFile(sink.config.dir / "prod" / SLUG / "127.0.0.1-6379.parquet")
    assert file.schema_arrow.remove_metadata() == PARQUET  # RP-59
    assert file.read()["key"].to_pylist() == [b"b", b"a", b"c"]  # RP-48, RP-68
    assert file.metadata.num_rows == 3
    footer = json.loads(file.metadata.metadata[b"millstream.run"])
    assert (
        footer.items() >= {"run": RUN.run_id, "batch": BATCH.key, "begin": 0, "done": 7, "parts": 2, "rows": 3}.items()
    )


async def test_the_file_grows_under_its_temporary_name(sink: ParquetBatches) -> None:  # RP-44, RP-57
    await write(sink)
    failpoints.arm("parquet.merge.before_rename=error")
    with pytest.raises(failpoints.FailpointError):
        await sink.finalize_instance(RUN, between(0, 7))
    directory = sink.config.dir / "prod" / f"tmp_{SLUG}"
    assert [p.name for p in directory.iterdir()] == ["127.0.0.1-6379.parquet.tmp"]
    failpoints.arm("")
    await sink.finalize_instance(RUN, between(0, 7))
    assert [p.name for p in directory.iterdir()] == ["127.0.0.1-6379.parquet"]


async def test_every_step_may_be_repeated(sink: ParquetBatches) -> None:  # T31, T32, T33
    for _ in range(2):
        await write(sink)
    for _ in range(2):
        assert await sink.finalize_instance(RUN, between(0, 7)) == 3
    for _ in range(2):
        await sink.finalize_batch(BATCH, RUNS)
    assert await sink.finalize_instance(RUN, between(0, 7)) == 3
    assert files(sink) == {f"prod/{SLUG}/127.0.0.1-6379.parquet"}


async def test_a_receipt_is_the_same_from_have_and_write(sink: ParquetBatches) -> None:  # hole h
    await sink.open_batch(RUN)
    one = chunk(1, 4, [b"a"])
    assert await sink.have(one) is None
    assert await sink.write_chunk(one) == await sink.have(one) == await sink.write_chunk(one)


@pytest.mark.parametrize("sort", [False, True])
async def test_an_empty_instance_becomes_a_file_without_rows(tmp_path: Path, sort: bool) -> None:  # T27
    sink = ParquetBatches(ParquetConfig(tmp_path, sort=sort))
    await sink.open_batch(RUN)
    assert await sink.finalize_instance(RUN, between(3, 4)) == 0
    await sink.finalize_batch(BATCH, {INSTANCE: (RUN, between(3, 4))})
    file = pq.read_table(tmp_path / "prod" / SLUG / "127.0.0.1-6379.parquet", partitioning=None)
    assert file.schema == PARQUET
    assert file.num_rows == 0


async def test_a_chunk_without_rows_closes_its_range(sink: ParquetBatches) -> None:
    await sink.open_batch(RUN)
    await sink.write_chunk(chunk(1, 6, []))
    assert await sink.finalize_instance(RUN, between(0, 7)) == 0


async def test_parts_of_a_shared_partition_need_not_tile(sink: ParquetBatches) -> None:
    await sink.open_batch(RUN)
    await sink.write_chunk(chunk(2, 3, [b"a"]))
    await sink.write_chunk(chunk(9, 9, [b"b"]))
    assert await sink.finalize_instance(RUN, between(0, 12, exclusive=False)) == 2


async def test_an_aborted_run_is_gone_for_good_and_a_new_one_may_begin(sink: ParquetBatches) -> None:  # T28
    await write(sink)
    await sink.abort_run(RUN)
    await sink.abort_run(RUN)
    assert not list(sink.config.dir.rglob("*.arrow"))
    assert (sink.config.dir / "prod" / f"tmp_{SLUG}").is_dir()  # RP-62
    with pytest.raises(SinkError, match="aborted"):
        await sink.open_batch(RUN)
    with pytest.raises(SinkError, match="not open"):
        await sink.write_chunk(chunk(1, 4, [b"a"]))
    await write(sink, LATER)
    assert await sink.finalize_instance(LATER, between(0, 7)) == 3


async def test_abort_of_what_is_published_changes_nothing(sink: ParquetBatches) -> None:
    await write(sink)
    await sink.finalize_instance(RUN, between(0, 7))
    await sink.finalize_batch(BATCH, RUNS)
    before = files(sink)
    await sink.abort_run(RUN)
    assert files(sink) == before


async def test_another_batch_is_not_held_up_by_one_that_failed(sink: ParquetBatches) -> None:  # T28
    await write(sink)
    other = Run(Batch("prod", BATCH.batch_ts + 10**9), INSTANCE, "c" * 32)
    await sink.open_batch(other)
    await sink.finalize_instance(other, between(8, 9))
    await sink.finalize_batch(other.batch, {INSTANCE: (other, between(8, 9))})
    assert any(f"tmp_{SLUG}" in str(p) for p in sink.config.dir.rglob("*"))


async def test_leftovers_of_a_killed_merge_are_not_published(sink: ParquetBatches) -> None:
    await write(sink)
    await sink.finalize_instance(RUN, between(0, 7))
    (sink.config.dir / "prod" / f"tmp_{SLUG}" / "127.0.0.1-6379.parquet.tmp").write_text("half")
    await sink.finalize_batch(BATCH, RUNS)
    assert files(sink) == {f"prod/{SLUG}/127.0.0.1-6379.parquet"}


async def test_a_paused_merge_that_wakes_just_before_the_rename_leaves_nothing_behind(
    sink: ParquetBatches, monkeypatch: pytest.MonkeyPatch
) -> None:  # T7
    await write(sink)
    await sink.finalize_instance(RUN, between(0, 7))
    late = sink.config.dir / "prod" / f"tmp_{SLUG}" / "127.0.0.1-6379.parquet.tmp"
    monkeypatch.setattr(publish, "failpoint", lambda name: name == publish.BEFORE_PUBLISH and late.write_text("half"))
    await sink.finalize_batch(BATCH, RUNS)
    assert files(sink) == {f"prod/{SLUG}/127.0.0.1-6379.parquet"}


@pytest.mark.parametrize("cluster", ["../../etc", "/abs", "..", "中文", "a\x00b", "A"])
@pytest.mark.parametrize("instance", ["../x:1", "[fe80::1%eth0]:6379", "/tmp/redis.sock", "实例", "a\x00b"])
async def test_no_name_leaves_the_directory_and_each_keeps_its_column(
    tmp_path: Path, cluster: str, instance: str
) -> None:  # T15, RP-71
    (tmp_path / "out").mkdir()
    sink = ParquetBatches(ParquetConfig(tmp_path / "out"))
    run = Run(Batch(cluster, 5), instance, "a" * 32)
    await sink.open_batch(run)
    await sink.write_chunk(chunk(1, 1, [b"k"], run))
    await sink.finalize_instance(run, between(0, 2))
    await sink.finalize_batch(run.batch, {instance: (run, between(0, 2))})
    (name,) = files(sink)
    assert not name.startswith("..")
    assert len(Path(name).parts) == 3
    path = sink.config.dir / name
    row = pq.read_table(path, partitioning=None).select(["cluster", "instance"]).to_pylist()
    assert row == [{"cluster": cluster, "instance": instance}]


async def test_every_operation_is_logged_with_path_and_instance(sink: ParquetBatches) -> None:  # RP-60, RP-64, RP-74
    with structlog.testing.capture_logs() as logs:
        await write(sink)
        await sink.finalize_instance(RUN, between(0, 7))
        await sink.finalize_batch(BATCH, RUNS)
    assert [entry["event"] for entry in logs] == [
        "parquet_batch_dir_created", "parquet_writer_open", "parquet_batch_written", "parquet_batch_written",
        "parquet_writer_closing", "parquet_writer_closed", "parquet_instance_finalized",
        "parquet_batch_dir_renaming", "parquet_batch_finalized",
    ]  # fmt: skip
    assert all(str(sink.config.dir) in entry["path"] for entry in logs)
    assert all(
        entry["instance"] == INSTANCE
        for entry in logs
        if "batch_dir" not in entry["event"] and "instances" not in entry
    )


async def test_what_a_killed_drop_left_is_swept_at_the_next_open(sink: ParquetBatches) -> None:
    grave = sink.config.dir / ".staging" / ".trash-1"
    grave.mkdir(parents=True)
    (grave / "part").write_text("x")
    await sink.open()
    assert not grave.exists()


async def test_rivals_in_one_process_give_one_result(sink: ParquetBatches, tmp_path: Path) -> None:  # rule 8
    rivals = [sink, ParquetBatches(ParquetConfig(tmp_path)), ParquetBatches(ParquetConfig(tmp_path))]
    await asyncio.gather(*(write(s) for s in rivals))
    assert await asyncio.gather(*(s.finalize_instance(RUN, between(0, 7)) for s in rivals)) == [3, 3, 3]
    await asyncio.gather(*(s.finalize_batch(BATCH, RUNS) for s in rivals))
    assert files(sink) == {f"prod/{SLUG}/127.0.0.1-6379.parquet"}
