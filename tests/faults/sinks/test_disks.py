"""The Parquet sinks on disks that are full, read-only, failing or gone: a clear error, nothing half, exact afterwards.

Real disks (a small tmpfs) where there is a way, failpoints where there is none (T43, RP-61, RP-62, RP-63).
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from millstream import failpoints
from millstream.errors import BatchRefusedError, RetryableSinkError, RunVoidError, SinkError
from schemas.batch import Run
from schemas.chunk import Chunk
from sinks.parquet import ParquetBatches, ParquetConfig, ParquetStream
from sinks.wrapper import SinkGroup
from tests.faults.sinks.conftest import MakeDisk
from tests.integration.parquet.data import BATCH, INSTANCE, RUN, SLUG, between, chunk

_RANDOM = random.Random(1)
KEYS = [_RANDOM.randbytes(100) for _ in range(2_000)]
"""200 kB that no codec makes smaller."""
BIG = chunk(1, 5, KEYS)
RUNS = {INSTANCE: (RUN, between(0, 6))}
FULL = r"No space left.*; [\d,]+ of 1,048,576 bytes .* are free at .*What to do: free space there"


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    failpoints.arm("")


def _replayed(one: Chunk) -> Chunk:
    return Chunk(one.id, one.records, one.run, replayed=True)


def _plain(first: int, last: int) -> Chunk:
    return chunk(first, last, KEYS, None)


def _visible(root: Path) -> dict[str, int]:
    """What a reader finds: file -> rows. Raises if one of them is not whole."""
    found = [p for p in root.rglob("[!.]*.parquet") if ".staging" not in str(p) and "/tmp_" not in str(p)]
    return {str(p.relative_to(root)): pq.ParquetFile(p).read().num_rows for p in found}


def _temporary(root: Path) -> list[Path]:
    return [p for p in root.rglob("*.tmp") if p.is_file()]


async def _batches(root: Path) -> ParquetBatches:
    sink = ParquetBatches(ParquetConfig(root))
    await sink.open()
    return sink


async def _publish(sink: ParquetBatches) -> None:
    """Everything again that may be again, as a successor does it."""
    await sink.open_batch(RUN)
    assert await sink.have(BIG) or await sink.write_chunk(BIG)
    assert await sink.finalize_instance(RUN, between(0, 6)) == len(KEYS)
    await sink.finalize_batch(BATCH, RUNS)


def _exact(root: Path) -> None:
    assert _visible(root) == {f"prod/{SLUG}/127.0.0.1-6379.parquet": len(KEYS)}
    assert sorted(pq.read_table(root / "prod" / SLUG, partitioning=None)["key"].to_pylist()) == sorted(KEYS)
    assert [p for p in root.rglob("*") if p.is_file() and "prod" not in str(p)] == []


# ---------------------------------------------------------------------- full
async def test_a_disk_that_fills_up_within_a_streams_file_shows_no_file_and_takes_it_whole_once_there_is_room(
    small_disk: MakeDisk,
) -> None:
    disk = small_disk()
    root = disk.path / "out"
    sink = ParquetStream(ParquetConfig(root))
    await sink.open()
    await sink.write_chunk(_plain(0, 9))
    disk.fill(leave=100_000)
    with pytest.raises(SinkError, match=rf"{root}.*{FULL}"):
        await sink.write_chunk(_plain(10, 19))
    assert list(_visible(root).values()) == [len(KEYS)]
    assert len(_temporary(root)) == 1  # RP-62
    disk.empty()
    successor = ParquetStream(ParquetConfig(root))
    await successor.open()
    assert await successor.have(_replayed(_plain(10, 19))) is None
    await successor.write_chunk(_replayed(_plain(10, 19)))
    assert list(_visible(root).values()) == [len(KEYS)] * 2
    assert _temporary(root) == []  # the one for diagnosis goes once it is explained


@pytest.mark.parametrize("step", ["part", "merge"])
async def test_a_disk_that_fills_up_within_a_part_or_a_merge_publishes_nothing_and_all_once_there_is_room(
    small_disk: MakeDisk, step: str
) -> None:
    disk = small_disk()
    root = disk.path / "out"
    sink = await _batches(root)
    await sink.open_batch(RUN)
    if step == "merge":
        await sink.write_chunk(BIG)
    disk.fill(leave=100_000)
    with pytest.raises(SinkError, match=rf"{root}.*instance {INSTANCE}.*{FULL}"):
        await (sink.write_chunk(BIG) if step == "part" else sink.finalize_instance(RUN, between(0, 6)))
    assert _visible(root) == {}
    disk.empty()
    await _publish(await _batches(root))
    _exact(root)


@pytest.mark.parametrize("point", ["before_rename", "after_rename", "after_staging_drop"])
async def test_a_disk_that_is_full_while_a_batch_is_published_shows_all_of_it_or_nothing(
    tmp_path: Path, point: str
) -> None:
    sink = await _batches(tmp_path)
    await sink.open_batch(RUN)
    await sink.write_chunk(BIG)
    await sink.finalize_instance(RUN, between(0, 6))
    failpoints.arm(f"parquet.publish.{point}=enospc")
    with pytest.raises(SinkError, match=rf"{tmp_path}.*No space left.*bytes.*What to do"):
        await sink.finalize_batch(BATCH, RUNS)
    assert len(_visible(tmp_path)) == (0 if point == "before_rename" else 1)
    failpoints.arm("")
    await (await _batches(tmp_path)).finalize_batch(BATCH, RUNS)
    _exact(tmp_path)


async def test_a_disk_without_inodes_is_told_as_full_with_their_number(small_disk: MakeDisk) -> None:
    disk = small_disk(inodes=12)
    sink = await _batches(disk.path / "out")
    for n in range(os.statvfs(disk.path).f_favail - 2):
        (disk.path / f"ballast-{n}").touch()
    with pytest.raises(SinkError, match=r"No space left.* and 0 of 12 inodes are free"):
        await sink.open_batch(RUN)
    for path in disk.path.glob("ballast-*"):
        path.unlink()
    with pytest.raises(SinkError, match="inodes"):
        await _publish(sink)  # 12 are too few for a batch: whatever was made of it is no obstacle later
    assert _visible(disk.path / "out") == {}


# ---------------------------------------------------------------------- read-only, failing
async def test_a_read_only_disk_is_named_and_the_batch_goes_on_once_it_is_writable(small_disk: MakeDisk) -> None:
    disk = small_disk()
    sink = await _batches(disk.path / "out")
    await sink.open_batch(RUN)
    disk.read_only(True)
    told = rf"{disk.path}.*Read-only file system.*What to do: make the file system writable"
    with pytest.raises(SinkError, match=told):
        await sink.write_chunk(BIG)
    with pytest.raises(SinkError, match=told):
        await _batches(disk.path / "out")  # a worker that is started now
    disk.read_only(False)
    await sink.write_chunk(BIG)
    disk.read_only(True)
    with pytest.raises(SinkError, match=told):
        await sink.finalize_instance(RUN, between(0, 6))
    disk.read_only(False)
    await sink.finalize_instance(RUN, between(0, 6))
    disk.read_only(True)
    with pytest.raises(SinkError, match=told):
        await sink.finalize_batch(BATCH, RUNS)
    assert _visible(disk.path / "out") == {}
    disk.read_only(False)
    await sink.finalize_batch(BATCH, RUNS)
    _exact(disk.path / "out")


@pytest.mark.parametrize("step", ["after_write", "after_fsync", "after_rename"])
async def test_retries_under_input_output_errors_leave_no_temporary_files(tmp_path: Path, step: str) -> None:
    # RP-62 keeps a file for diagnosis; a disk that fails for an hour must not be filled with one per retry
    sink = ParquetStream(ParquetConfig(tmp_path))
    group = SinkGroup([sink], retry_timeout=None, retry_initial=0.001, retry_max=0.002, retry_jitter=0)
    await group.open()
    failpoints.arm(f"parquet.part.{step}=eio:0.9", seed=5)
    for first in range(0, 50, 10):
        await group.write(_plain(first, first + 9))
    await group.close()
    assert list(_visible(tmp_path).values()) == [len(KEYS)] * 5
    assert _temporary(tmp_path) == []


@pytest.mark.parametrize("point", ["merge.mid", "merge.before_rename", "merge.after_rename"])
async def test_retries_of_a_merge_under_input_output_errors_leave_no_temporary_files(
    tmp_path: Path, point: str
) -> None:
    sink = await _batches(tmp_path)
    await sink.open_batch(RUN)
    await sink.write_chunk(BIG)
    for _ in range(3):
        failpoints.arm(f"parquet.{point}=eio")
        try:
            await sink.finalize_instance(RUN, between(0, 6))
        except RetryableSinkError:
            continue
    assert len(_temporary(tmp_path)) <= 1  # `<instance>.parquet.tmp` shows the last try
    failpoints.arm("")
    await _publish(sink)
    _exact(tmp_path)


# ---------------------------------------------------------------------- gone
async def test_a_directory_moved_away_under_a_stream_is_told_and_not_made_anew(tmp_path: Path) -> None:
    root, away = tmp_path / "out", tmp_path / "away"
    sink = ParquetStream(ParquetConfig(root))
    await sink.open()
    await sink.write_chunk(_plain(0, 9))
    root.rename(away)
    with pytest.raises(SinkError, match=rf"{re.escape(str(root))} is gone .*What to do: put the directory back"):
        await sink.write_chunk(_plain(10, 19))
    assert not root.exists()
    root.mkdir()
    with pytest.raises(SinkError, match="was replaced by another directory"):
        await sink.write_chunk(_plain(10, 19))
    root.rmdir()
    away.rename(root)
    await sink.write_chunk(_plain(10, 19))
    assert list(_visible(root).values()) == [len(KEYS)] * 2


@pytest.mark.parametrize("step", range(5))
async def test_a_directory_moved_away_under_a_batch_voids_no_run_and_the_batch_goes_on_once_it_is_back(
    tmp_path: Path, step: int
) -> None:
    # a run that counts as void is skipped for good: only the sink's own directories may say so
    root, away = tmp_path / "out", tmp_path / "away"
    sink = await _batches(root)
    steps = [
        lambda: sink.open_batch(RUN),
        lambda: sink.write_chunk(BIG),
        lambda: sink.finalize_instance(RUN, between(0, 6)),
        lambda: sink.finalize_batch(BATCH, RUNS),
        lambda: sink.abort_run(RUN),
    ]
    for number, do in enumerate(steps[: min(step + 1, 4)]):
        if number == step:
            break
        await do()
    root.rename(away)
    with pytest.raises(SinkError, match="is gone") as failed:
        await steps[step]()
    assert not isinstance(failed.value, RunVoidError)
    assert not root.exists()
    away.rename(root)
    await _publish(sink) if step < 4 else None
    _exact(root)


async def test_a_directory_that_goes_in_the_middle_of_a_part_voids_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, away = tmp_path / "out", tmp_path / "away"
    sink = await _batches(root)
    await sink.open_batch(RUN)
    real = os.link
    monkeypatch.setattr(os, "link", lambda *a, **k: (root.rename(away), real(*a, **k)))
    with pytest.raises(SinkError, match="is gone") as failed:
        await sink.write_chunk(BIG)
    assert not isinstance(failed.value, RunVoidError)
    monkeypatch.undo()
    away.rename(root)
    await _publish(sink)
    _exact(root)


async def test_a_staging_directory_deleted_under_the_worker_voids_its_runs_and_says_how_to_begin_anew(
    tmp_path: Path,
) -> None:
    sink = await _batches(tmp_path)
    await sink.open_batch(RUN)
    await sink.write_chunk(BIG)
    shutil.rmtree(tmp_path / ".staging")
    with pytest.raises(RunVoidError, match=f"instance {INSTANCE}.* is not open"):
        await sink.write_chunk(BIG)
    with pytest.raises((RunVoidError, BatchRefusedError), match=r"\.staging.*not open"):
        await sink.finalize_instance(RUN, between(0, 6))
    with pytest.raises(BatchRefusedError, match="not open"):
        await sink.finalize_batch(BATCH, RUNS)
    assert _visible(tmp_path) == {}
    # what is left of it is in the way of a second run, until a human has looked (RP-70)
    again = Run(BATCH, INSTANCE, "b" * 32)
    with pytest.raises(BatchRefusedError, match=rf"tmp_{SLUG} is there but not ours: clean up \(remove (.*)\)") as told:
        await sink.open_batch(again)
    removed = re.search(r"remove (\S+)\)", str(told.value))
    assert removed
    shutil.rmtree(removed[1])
    await sink.open_batch(again)
    await sink.write_chunk(Chunk(BIG.id, BIG.records, again))
    await sink.finalize_instance(again, between(0, 6))
    await sink.finalize_batch(BATCH, {INSTANCE: (again, between(0, 6))})
    _exact(tmp_path)
