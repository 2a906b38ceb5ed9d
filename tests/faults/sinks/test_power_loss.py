"""Power lost at every point of a batch and of a stream of Parquet files (in the spirit of ALICE and CrashMonkey).

One run is recorded; then, for every cut and for what a disk may hold at it (tests/faults/sinks/disk.py), the tree is
built, looked at as a reader does, and given to a worker that goes on behind the last acknowledged step.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millstream.errors import MillstreamError
from sinks.parquet import ParquetBatches, ParquetConfig, ParquetStream
from tests.chaos.proof import append
from tests.faults.sinks.disk import Event, Recorder, State, UnseenOperationError, states
from tests.integration.parquet import job
from tests.integration.parquet.data import SLUG, chunk

FULL, ROWS = "127.0.0.1-6379.parquet", [b"a", b"b", b"c", b"d", b"\xff"]


@pytest.fixture
def place() -> Iterator[Path]:
    """In memory: the recorder needs no disk, and thousands of fsyncs of a real one take minutes."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="millstream-power-") as path:
        yield Path(path)


# ---------------------------------------------------------------------- what is recorded, and how a worker goes on
class Batch:
    """A batch: a run that is voided, an empty instance, three parts, merges, publication."""

    name = "batch"

    def run(self, root: Path, progress: Path) -> None:
        """All steps, from the first one that is not acknowledged."""
        if job.read(progress):
            asyncio.run(ParquetBatches(ParquetConfig(root)).open())  # every life begins so
        asyncio.run(job.main(root, progress, sort=True, until=99))

    def visible(self, root: Path) -> str:
        """What is wrong with what readers see, or nothing. A batch is there as a whole or not at all."""
        published = root / "prod" / SLUG
        if not published.exists():
            return ""
        found = {p.name: _keys(p) for p in published.iterdir()}
        whole = len(found) == 2 and found.pop(FULL, None) == ROWS and list(found.values()) == [[]]
        return "" if whole else f"published: {sorted(p.name for p in published.iterdir())}"

    def finished(self, root: Path) -> str:
        """What is wrong in the end, or nothing."""
        if not (root / "prod" / SLUG).exists():
            return "not published"
        left = [
            p for p in root.rglob("*") if p.is_file() and p.parent != root / "prod" / SLUG and ".trash" not in str(p)
        ]
        if left or [p.name for p in (root / "prod").iterdir()] != [SLUG]:
            return f"left behind: {left}"
        return self.visible(root)


class Stream:
    """Two chunks of one partition and one of another one."""

    name = "stream"
    chunks = (chunk(0, 1, [b"a", b"b"], None), chunk(2, 2, [b"c"], None), chunk(0, 3, [b"d"] * 4, None, partition=1))

    def run(self, root: Path, progress: Path) -> None:
        """As `Batch.run`."""
        sink = ParquetStream(ParquetConfig(root))

        async def work() -> None:
            await sink.open()
            for n, one in enumerate(self.chunks):
                if n < job.read(progress):
                    assert await sink.have(one), f"chunk {n} was acknowledged and is gone"
                    continue
                receipt = await sink.have(one) or await sink.write_chunk(one)
                assert receipt.rows == one.rows
                job.record(progress, n + 1)

        asyncio.run(work())

    def visible(self, root: Path) -> str:
        """A file is there as a whole or not at all."""
        known = [one.records["key"].to_pylist() for one in self.chunks]
        found = {str(p): _keys(p) for p in root.glob("t/*/[!.]*.parquet")}
        return "" if all(keys in known for keys in found.values()) else f"visible: {found}"

    def finished(self, root: Path) -> str:
        """Every chunk has its file, and no other one is to be seen."""
        found = sorted(k for p in root.glob("t/*/[!.]*.parquet") for k in _keys(p) or [b"damaged"])
        return "" if found == [b"a", b"b", b"c", *[b"d"] * 4] else f"in the end: {found}"


def _keys(path: Path) -> list[bytes] | None:
    try:
        keys: list[bytes] = pq.ParquetFile(path).read()["key"].to_pylist()
    except (pa.ArrowInvalid, OSError):
        return None
    return keys


Work = Batch | Stream
KEPT = "names: all there, data: all there"


@dataclass
class Outcome:
    """Of all states of one recording."""

    events: int = 0
    states: int = 0
    faults: list[str] = field(default_factory=list)


def record(work: Work, place: Path) -> Recorder:
    """One undisturbed run."""
    root, progress = place / "recorded", place / "recorded.progress"
    root.mkdir(exist_ok=True)
    recorder = Recorder(root, lambda: job.read(progress))
    with recorder.recording():
        work.run(root, progress)
    assert work.finished(root) == ""
    return recorder


def examine(
    work: Work,
    place: Path,
    *,
    recorder: Recorder | None = None,
    thorough: bool = True,
    ignores: Callable[[Event], bool] = lambda _event: False,
    until_faults: int = 1 << 30,
) -> Outcome:
    """Record, cut at every point, look, recover, look again."""
    recorder = recorder or record(work, place)
    outcome = Outcome(len(recorder.events))
    try:
        for state in states(recorder, thorough=thorough, ignores=ignores):
            outcome.states += 1
            fault = _examine(work, state, place / "cut")
            if fault:
                outcome.faults.append(f"{state}: {fault}")
                if len(outcome.faults) >= until_faults:
                    break
    finally:
        recorder.close()
    return outcome


def _examine(work: Work, state: State, root: Path) -> str:
    # A step may be done again that was acknowledged: its commit is what was lost with the worker.
    return _recover(work, state, root, state.acknowledged) or _recover(
        work, state, root, max(0, state.acknowledged - 1)
    )


def _recover(work: Work, state: State, root: Path, acknowledged: int) -> str:
    progress = root.with_suffix(".progress")
    state.build(root)
    job.record(progress, acknowledged)
    try:
        if fault := work.visible(root):
            return f"right after the crash: {fault}"
        try:
            work.run(root, progress)
        except (MillstreamError, AssertionError, ValueError, OSError) as e:
            return f"recovery: {type(e).__name__}: {e}"
        return work.finished(root)
    finally:
        shutil.rmtree(root)
        progress.unlink()


# ---------------------------------------------------------------------- the checks
WORKS = pytest.mark.parametrize("work", [Batch(), Stream()], ids=lambda work: work.name)


@WORKS
def test_power_lost_at_any_point_loses_nothing_acknowledged_and_shows_nothing_half(work: Work, place: Path) -> None:
    # RP-61, RP-62; holes d and f
    outcome = examine(work, place)
    print(f"{work.name}: {outcome.events} events, {outcome.states} states")
    if os.environ.get("CHAOS_RECORD"):
        append("faults.jsonl", attack=f"power_loss {work.name}", events=outcome.events, states=outcome.states)
    assert outcome.faults == []
    assert outcome.states >= 20


@pytest.mark.faults
@pytest.mark.timeout(3600)
@WORKS
def test_power_lost_again_at_any_point_of_the_recovery(work: Work, place: Path) -> None:
    """A second crash, in the life after the first one; a quarter of the first ones is taken, by the seed."""
    rng = random.Random(seed := int(os.environ.get("CHAOS_SEED") or time.time_ns() % 10**9))
    print(f"seed {seed}")
    first, total = record(work, place), Outcome()
    crashes = [state for state in states(first, thorough=False) if rng.random() < 0.25]
    first.close()
    for n, state in enumerate(crashes):
        home = place / f"again-{n}"
        state.build(home / "recorded")
        job.record(home / "recorded.progress", state.acknowledged)
        second = examine(work, home, recorder=record(work, home), thorough=False)
        total.events, total.states = total.events + second.events, total.states + second.states
        total.faults += [f"first {state}; then {fault}" for fault in second.faults]
        shutil.rmtree(home)
    append("faults.jsonl", attack=f"power_loss_twice {work.name}", seed=seed, first_crashes=len(crashes),
           events=total.events, states=total.states, faults=len(total.faults))  # fmt: skip
    assert total.faults == []


def _is_directory(event: Event) -> bool:
    return event.synced is not None and Path(event.label.removeprefix("fsync ")).suffix == ""


@WORKS
@pytest.mark.parametrize("forgotten", ["directories", "files"])
def test_without_an_fsync_of_directories_or_of_files_the_check_finds_faults(
    work: Work, place: Path, forgotten: str
) -> None:
    # the known-bad control: the same recording, as if the program had never made these durable
    outcome = examine(
        work, place, ignores=lambda e: e.synced is not None and _is_directory(e) == (forgotten == "directories"),
        until_faults=1,
    )  # fmt: skip
    assert len(outcome.faults) == 1


def test_an_operation_that_the_recorder_does_not_see_is_an_error(place: Path) -> None:
    root = place / "tree"
    root.mkdir()
    recorder = Recorder(root, lambda: 0)
    libc = ctypes.CDLL(None)

    def work() -> None:
        with recorder.recording():
            (root / "a").mkdir()
            libc.rename(bytes(root / "a"), bytes(root / "b"))
            (root / "c").mkdir()

    with pytest.raises(UnseenOperationError, match="unseen"):
        work()
    recorder.close()
    assert not hasattr(os.mkdir, "__closure__")  # the hooks are gone


@WORKS
def test_replaying_the_recording_gives_the_tree_that_the_program_left(work: Work, place: Path) -> None:
    # with everything kept the model must be the disk: nothing was missed, nothing was made up
    recorder = record(work, place)
    recorder.close()
    kept = [state for state in states(recorder, thorough=False) if state.variant == KEPT]
    found = {str(p.relative_to(recorder.root)): p.read_bytes() for p in recorder.root.rglob("*") if p.is_file()}
    assert {path: content for path, _, content in kept[-1].files} == found
    assert set(kept[-1].directories) == {
        str(p.relative_to(recorder.root)) for p in recorder.root.rglob("*") if p.is_dir()
    }
