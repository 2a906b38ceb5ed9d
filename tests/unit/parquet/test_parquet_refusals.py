"""Batches: what is refused, what stops, and what a broken disk does (RP-61 to RP-70)."""

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import structlog

from millstream import failpoints
from millstream.errors import BatchRefusedError, IdentityMismatchError, RetryableSinkError, SinkError
from schemas.batch import Batch, Run
from sinks.parquet import ParquetBatches, ParquetConfig
from sinks.parquet.staging import Staging
from tests.integration.parquet.data import BATCH, INSTANCE, RUN, SLUG, between, chunk
from tests.unit.parquet.batches import LATER, RUNS, files, write


async def test_another_chunk_under_the_same_range_stops(sink: ParquetBatches) -> None:  # hole b
    await write(sink)
    for other in ({"topic_id": "new"}, {"crc": 2}, {"epoch": 1}):
        for verb in (sink.have, sink.write_chunk):
            with pytest.raises(IdentityMismatchError, match="holds another chunk"):
                await verb(chunk(1, 4, [b"b", b"a"], **other))


async def test_a_damaged_part_stops(sink: ParquetBatches) -> None:
    await write(sink)
    part = next(sink.config.dir.rglob("*.arrow"))
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(IdentityMismatchError, match=str(part)):
        await sink.finalize_instance(RUN, between(0, 7))


@pytest.mark.parametrize(
    ("where", "says"),
    [
        (between(-1, 7), "a gap: offset 0 is next"),
        (between(0, 9), "a gap: offsets 7 to 8 are in no part"),
        (between(0, 6), "an overlap"),
        (between(1, 7), "an overlap"),
    ],
)
async def test_parts_that_do_not_cover_the_range_stop(sink: ParquetBatches, where, says: str) -> None:
    await write(sink)
    with pytest.raises(SinkError, match=f"{INSTANCE}, {says}"):
        await sink.finalize_instance(RUN, where)


async def test_a_gap_or_an_overlap_between_parts_stops(sink: ParquetBatches) -> None:
    await sink.open_batch(RUN)
    await sink.write_chunk(chunk(1, 4, [b"a"]))
    await sink.write_chunk(chunk(6, 6, [b"c"]))
    with pytest.raises(SinkError, match="a gap: offset 5 is next"):
        await sink.finalize_instance(RUN, between(0, 7))
    await sink.write_chunk(chunk(4, 5, [b"b"]))
    with pytest.raises(SinkError, match="an overlap: offset 5 is next"):
        await sink.finalize_instance(RUN, between(0, 7))


async def test_a_part_of_another_partition_is_not_merged(sink: ParquetBatches) -> None:
    await write(sink)
    with pytest.raises(IdentityMismatchError, match="belongs to"):
        await sink.finalize_instance(RUN, type(between(0, 7))("id", 0, 1, 0, 7, True))


async def test_a_later_run_voids_the_earlier_one(sink: ParquetBatches) -> None:  # hole e
    await write(sink)
    await sink.finalize_instance(RUN, between(0, 7))
    await sink.open_batch(LATER)
    await sink.write_chunk(chunk(9, 9, [b"new"], LATER))
    for old in (
        sink.write_chunk(chunk(1, 4, [b"b", b"a"])),
        sink.open_batch(RUN),
        sink.finalize_instance(RUN, between(0, 7)),
    ):
        with pytest.raises(SinkError, match=RUN.run_id):
            await old
    with pytest.raises(BatchRefusedError, match=f"voided by run {LATER.run_id}"):
        await sink.finalize_batch(BATCH, RUNS)
    with pytest.raises(IdentityMismatchError, match=RUN.run_id):
        await sink.finalize_batch(BATCH, {INSTANCE: (LATER, between(8, 10))})
    assert await sink.finalize_instance(LATER, between(8, 10)) == 1
    await sink.finalize_batch(BATCH, {INSTANCE: (LATER, between(8, 10))})
    path = sink.config.dir / "prod" / SLUG / "127.0.0.1-6379.parquet"
    assert pq.read_table(path, partitioning=None)["key"].to_pylist() == [b"new"]


async def test_a_foreign_tmp_directory_is_refused_with_the_ways_out(sink: ParquetBatches) -> None:  # RP-70, T29
    foreign = sink.config.dir / "prod" / f"tmp_{SLUG}"
    foreign.mkdir(parents=True)
    with pytest.raises(BatchRefusedError, match=rf"remove {foreign}\) or use another batch timestamp"):
        await sink.open_batch(RUN)


@pytest.mark.parametrize("turn", range(1, 6))
def test_an_instance_that_opens_the_batch_between_our_looks_is_no_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:  # T29; chaos seed 665556759: the batch was refused for good
    looks = 0

    def beside(look: Callable[..., bool]) -> Callable[..., bool]:
        def looked(path: Path) -> bool:
            nonlocal looks
            looks += 1
            if looks == turn:
                Staging(tmp_path, BATCH, "millstream").open()
            return look(path)

        return looked

    monkeypatch.setattr("os.path.lexists", beside(os.path.lexists))
    monkeypatch.setattr(Path, "exists", beside(Path.exists))
    ours = Staging(tmp_path, BATCH, "millstream")
    ours.open()
    assert looks >= turn
    ours.check_owner()
    assert [p.name for p in (tmp_path / "prod").iterdir()] == [f"tmp_{SLUG}"]


async def test_another_owners_batch_is_refused(sink: ParquetBatches, tmp_path: Path) -> None:  # RP-70
    await write(sink)
    with pytest.raises(BatchRefusedError, match=r"belongs to 'millstream'.*not to 'other'.*another batch timestamp"):
        await ParquetBatches(ParquetConfig(tmp_path, owner="other")).open_batch(RUN)


async def test_two_batches_in_one_millisecond_are_not_mixed(sink: ParquetBatches) -> None:  # T30
    first, second = Batch("prod", 1691999696123000001), Batch("prod", 1691999696123999999)
    assert first.slug == second.slug
    await sink.open_batch(Run(first, INSTANCE, "a" * 32))
    with pytest.raises(BatchRefusedError, match=r"123000001Z/prod.*123999999Z/prod"):
        await sink.open_batch(Run(second, INSTANCE, "b" * 32))


async def test_a_published_batch_is_never_opened_or_replaced(sink: ParquetBatches) -> None:  # T29, T7
    await write(sink)
    await sink.finalize_instance(RUN, between(0, 7))
    await sink.finalize_batch(BATCH, RUNS)
    before = files(sink)
    for run in (RUN, LATER):
        with pytest.raises(BatchRefusedError, match=r"published already.*another batch timestamp"):
            await sink.open_batch(run)
        with pytest.raises(SinkError, match="not open"):
            await sink.write_chunk(chunk(1, 4, [b"b", b"a"], run))
    with pytest.raises(BatchRefusedError, match="published by another run"):
        await sink.finalize_batch(BATCH, {INSTANCE: (LATER, between(0, 7))})
    with pytest.raises(BatchRefusedError, match="not open"):
        await sink.finalize_instance(LATER, between(0, 7))
    assert files(sink) == before
    assert not (sink.config.dir / "prod" / f"tmp_{SLUG}").exists()


async def test_a_batch_with_a_missing_instance_is_not_published(sink: ParquetBatches) -> None:  # T25
    await write(sink)
    await sink.finalize_instance(RUN, between(0, 7))
    other = Run(BATCH, "127.0.0.1:6380", "c" * 32)
    with (
        structlog.testing.capture_logs() as logs,
        pytest.raises(SinkError, match=r"instance 127.0.0.1:6380 is missing"),
    ):
        await sink.finalize_batch(BATCH, RUNS | {other.instance: (other, between(0, 1))})
    assert [e["instance"] for e in logs if e["event"] == "parquet_instance_not_found"] == ["127.0.0.1:6380"]
    assert not (sink.config.dir / "prod" / SLUG).exists()


@pytest.mark.parametrize("name", ["notes.txt", "other.parquet", "other.parquet.tmp"])
async def test_foreign_files_in_a_batch_stop_its_publication(sink: ParquetBatches, name: str) -> None:
    await write(sink)
    await sink.finalize_instance(RUN, between(0, 7))
    (sink.config.dir / "prod" / f"tmp_{SLUG}" / name).write_text("x")
    with pytest.raises(BatchRefusedError, match=name):
        await sink.finalize_batch(BATCH, RUNS)


async def test_a_foreign_file_under_an_instances_name_is_not_taken_for_ours(sink: ParquetBatches) -> None:
    await write(sink)
    (sink.config.dir / "prod" / f"tmp_{SLUG}" / "127.0.0.1-6379.parquet").write_text("x")
    with pytest.raises(IdentityMismatchError, match="no file of ours"):
        await sink.finalize_instance(RUN, between(0, 7))


async def test_a_removed_tmp_directory_is_an_error_not_made_again(sink: ParquetBatches) -> None:  # T7
    await write(sink)
    await sink.finalize_instance(RUN, between(0, 7))
    shutil.rmtree(sink.config.dir / "prod" / f"tmp_{SLUG}")
    with pytest.raises(SinkError, match=f"tmp_{SLUG}"):
        await sink.finalize_batch(BATCH, RUNS)
    with pytest.raises(SinkError, match="not open"):
        await sink.finalize_instance(RUN, between(0, 7))


@pytest.mark.parametrize("run_id", ["", "../../x", "A" * 32, "a" * 31])
async def test_a_run_id_is_never_a_path(sink: ParquetBatches, run_id: str) -> None:  # T15
    with pytest.raises(SinkError, match="32 hexadecimal digits"):
        await sink.open_batch(Run(BATCH, INSTANCE, run_id))


async def test_a_chunk_without_a_run_is_refused(sink: ParquetBatches) -> None:
    with pytest.raises(SinkError, match="belongs to no run"):
        await sink.write_chunk(chunk(1, 1, [b"k"], None))


@pytest.mark.parametrize(
    "step", ["parquet.part.after_write", "parquet.merge.before", "parquet.merge.mid", "parquet.merge.before_rename"]
)
async def test_a_full_disk_names_path_and_instance_and_a_retry_with_room_succeeds(
    sink: ParquetBatches, step: str
) -> None:  # T43, RP-61, RP-62
    failpoints.arm(f"{step}=enospc")

    async def both() -> int:
        await write(sink)
        return await sink.finalize_instance(RUN, between(0, 7))

    with pytest.raises(SinkError, match=rf"{sink.config.dir}.*instance {INSTANCE}.*No space left"):
        await both()
    assert any(name.endswith(".tmp") for name in files(sink)) != (step == "parquet.merge.before")
    failpoints.arm("")
    assert await both() == 3
    await sink.finalize_batch(BATCH, RUNS)
    assert files(sink) == {f"prod/{SLUG}/127.0.0.1-6379.parquet"}


async def test_an_input_output_error_of_a_merge_may_be_retried(sink: ParquetBatches) -> None:
    await write(sink)
    failpoints.arm("parquet.merge.mid=eio")
    with pytest.raises(RetryableSinkError, match=INSTANCE):
        await sink.finalize_instance(RUN, between(0, 7))


def open_unprivileged(top: Path, told: Connection) -> None:
    sink = ParquetBatches(ParquetConfig(top))
    if os.getuid() == 0:
        os.setuid(65534)
    try:
        sink._open_batch(RUN)
    except SinkError as e:
        told.send(str(e))


def test_a_directory_without_permission_is_named() -> None:  # RP-63, T43
    # Root passes every permission bit, so a child without privileges tries; it sends its error text back.
    forks = multiprocessing.get_context("forkserver")  # a fork of this process would have none of its threads
    readable, writable = forks.Pipe(duplex=False)
    top = Path(tempfile.mkdtemp())  # pytest's own directories cannot even be entered by others
    top.chmod(0o555)
    child = forks.Process(target=open_unprivileged, args=(top, writable))
    child.start()
    writable.close()
    with readable:
        text = readable.recv()
    child.join(60)
    child.close()
    top.rmdir()
    assert str(top) in text
    assert f"instance {INSTANCE}: Permission denied" in text


async def test_a_file_in_place_of_a_directory_is_named(sink: ParquetBatches) -> None:  # RP-63
    (sink.config.dir / "prod").write_text("in the way")
    with pytest.raises(SinkError, match=rf"{sink.config.dir / 'prod'}.*instance {INSTANCE}"):
        await sink.open_batch(RUN)
