"""kill -9, SIGSTOP and rivals at every step of the Parquet batch sink: the published batch is exact every time."""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from millstream.failpoints import KNOWN
from tests.integration.parquet import job
from tests.integration.parquet.data import SLUG

POINTS = sorted(name for name in KNOWN if name.startswith("parquet."))
EXPECTED = {"127.0.0.1-6379.parquet": [b"d", b"a", b"c", b"b", b"\xff"]}
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([job.__name__])  # a life starts in milliseconds


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


Children = list[BaseProcess]


@pytest.fixture
def children() -> Iterator[Children]:
    started: Children = []
    yield started
    for child in started:
        child.kill()
        child.join()
        child.close()


def start(
    children: Children, out: Path, name: str, failpoints: str = "", seed: int = 1, sort: bool = False, until: int = 99
) -> BaseProcess:
    arguments = (out, out.parent / f"{name}.progress", failpoints, seed, sort, until)
    child = FORKS.Process(target=job.life, args=arguments, name=name)
    child.start()
    children.append(child)
    return child


def ended(out: Path, child: BaseProcess) -> tuple[int | None, str]:
    child.join(60)
    errors = out.parent / f"{child.name}.error"
    return child.exitcode, errors.read_text() if child.exitcode == 3 else ""


def take_over(out: Path) -> None:
    """Process b begins where a stands, as a successor does."""
    shutil.copy(out.parent / "a.progress", out.parent / "b.progress")


def check(out: Path, sort: bool = False) -> None:
    """Reads only the directory: one file per instance with exactly its rows, and nothing else anywhere."""
    published = out / "prod" / SLUG
    found = {p.name: pq.ParquetFile(p).read()["key"].to_pylist() for p in published.glob("*")}
    empty = [name for name in found if name not in EXPECTED]
    assert len(empty) == 1
    assert found.pop(empty[0]) == []
    assert found == ({name: sorted(keys) for name, keys in EXPECTED.items()} if sort else EXPECTED)
    assert [p.name for p in (out / "prod").iterdir()] == [SLUG]
    assert not [p for p in out.rglob("*") if p.is_file() and p.parent != published and ".trash" not in str(p)]


def test_the_check_catches_a_row_too_many_and_a_leftover(out: Path, children: Children) -> None:
    assert ended(out, start(children, out, "a")) == (0, "")
    check(out)
    path = out / "prod" / SLUG / "127.0.0.1-6379.parquet"
    table = pq.ParquetFile(path).read()
    pq.write_table(table.slice(1), path)
    with pytest.raises(AssertionError):
        check(out)
    pq.write_table(table, path)
    check(out)
    (out / "prod" / f"tmp_{SLUG}").mkdir()
    with pytest.raises(AssertionError):
        check(out)


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_step_and_a_second_life_give_the_exact_batch(out: Path, children: Children, point: str) -> None:
    assert ended(out, start(children, out, "a", f"{point}=kill"))[0] == -signal.SIGKILL
    assert ended(out, start(children, out, "a")) == (0, "")
    check(out)


@pytest.mark.parametrize("seed", range(6))
def test_many_lives_killed_at_random_steps_give_the_exact_batch(out: Path, children: Children, seed: int) -> None:
    armed = ",".join(f"{point}=kill:0.15" for point in POINTS)
    lives = [ended(out, start(children, out, "a", armed, seed * 100 + life, True))[0] for life in range(5)]
    assert -signal.SIGKILL in lives
    assert ended(out, start(children, out, "a", sort=True)) == (0, "")
    check(out, sort=True)


@pytest.mark.parametrize("common", [0, 5, 8, 10])
def test_two_processes_at_once_publish_one_batch(out: Path, children: Children, common: int) -> None:
    assert ended(out, start(children, out, "a", until=common)) == (0, "")
    if common:
        take_over(out)
    rivals = [start(children, out, name) for name in ("a", "b")]
    results = [ended(out, child) for child in rivals]
    assert any(code == 0 for code, _ in results), (common, results)
    assert all(code in {0, 3} for code, _ in results), (common, results)
    check(out)


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_paused_at_any_step_wakes_after_the_publication_and_changes_nothing(
    out: Path, children: Children, point: str
) -> None:  # T7, hole f
    paused = start(children, out, "a", f"{point}=stop1")
    deadline = time.monotonic() + 30
    while Path(f"/proc/{paused.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert paused.exitcode is None, "ended before it reached the failpoint"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    take_over(out)
    assert ended(out, start(children, out, "b")) == (0, "")
    check(out)
    os.kill(paused.pid, signal.SIGCONT)
    code, errors = ended(out, paused)
    assert code in {0, 3}, errors
    check(out)
