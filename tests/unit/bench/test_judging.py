"""Targets, flatness of memory, and what is accepted as written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench import report, targets, verify
from bench.groups.memory import judge
from bench.runner import ContenderError, Result
from bench.session import Bench, Options, Row

SCHEMA = pa.schema([("_partition", pa.int32()), ("_offset", pa.int64())])


def _row(group: str, key: str, *rates: tuple[float, float], **extra: Any) -> Row:
    """Rates: (rows per CPU-second, rows per second) of each round."""
    results = [Result(1_000_000, 1_000_000 / wall, 1_000_000 / cpu, 1 << 28, extra=extra) for cpu, wall in rates]
    return Row(group, key, f"{group} {key}", results)


def _verdict(rows: list[Row], what: str) -> targets.Verdict:
    (found,) = [v for v in targets.verdicts(rows) if what in v.what]
    return found


def test_a_target_is_missed_when_one_of_both_rates_misses_it() -> None:
    alone = _row("arrow", "alone", (4e6, 4e6))
    assert _verdict([_row("arrow", "on", (3.3e6, 3.3e6)), alone], "writer does alone").kept
    assert not _verdict([_row("arrow", "on", (3.3e6, 3.1e6)), alone], "writer does alone").kept
    assert not _verdict([_row("arrow", "on", (3.1e6, 3.3e6)), alone], "writer does alone").kept


def test_the_cost_of_exactly_once_is_taken_round_by_round() -> None:
    # A machine that slows down from round to round must not look like a cost.
    off = _row("json", "off", (400e3, 1.0), (300e3, 1.0), (200e3, 1.0))
    on = _row("json", "on", (396e3, 1.0), (297e3, 1.0), (100e3, 1.0))
    assert _verdict([on, off], "exactly once costs").reached.startswith("1.0%")


def test_growth_is_judged_by_the_lowest_of_all_sizes() -> None:
    sizes = [_row("growth", key, (rate, 1.0)) for key, rate in {"p1": 300e3, "p4": 310e3, "p16": 305e3}.items()]
    assert _verdict(sizes, "by partitions").kept
    assert not _verdict([*sizes, _row("growth", "p64", (250e3, 1.0))], "by partitions").kept
    assert not _verdict([*sizes, _row("growth", "n10", (250e3, 1.0))], "by records").kept


def _course(*sizes: float) -> list[tuple[float, int]]:
    return [(at / 4, int(size * 2**20)) for at, size in enumerate(sizes)]


def test_memory_that_grows_slowly_is_not_flat_and_a_single_peak_does_not_count() -> None:
    start = [100.0 + 10 * n for n in range(40)]
    flat = judge(_course(*start, *[500.0 + 20 * (n % 3) for n in range(360)]), None)
    assert flat["highest"] <= 1.1
    assert flat["lowest"] >= 0.9
    peak = judge(_course(*start, *[900.0 if n == 100 else 500.0 for n in range(360)]), None)
    assert peak["highest"] == 1.0
    grows = judge(_course(*start, *[500.0 + n * 0.5 for n in range(360)]), None)
    assert grows["highest"] > 1.1
    assert grows["grown"] > 1.1


def _files(directory: Path, *offsets: list[int]) -> Path:
    for n, some in enumerate(offsets):
        pq.write_table(pa.table([[0] * len(some), some], schema=SCHEMA), directory / f"{n}.parquet")
    return directory


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (([0, 1], [3, 4]), "1 of 5 records missing"),
        (([0, 1, 2], [2, 3, 4]), "0 of 5 records missing, 6 rows of 5"),
        (([0, 1, 2], [2, 3]), "1 of 5 records missing, 5 rows of 5"),
    ],
)
def test_a_record_missing_or_doubled_in_the_files_fails_its_contender(
    files: tuple[list[int], ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "expected_offsets", lambda _servers, _topic: {0: np.arange(5)})
    verify.check_files("", "t", _files(tmp_path, [0, 1, 2], [3, 4]))
    with pytest.raises(ContenderError, match=told):
        verify.check_files("", "t", _files(tmp_path, *files))


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [_row("json", "on", (1e5, 2e5), (2e5, 3e5)), _row("latency", "on", (1e5, 1e5), p50_ms=1.5, curve=[1.0, 2.0])]
    about = {"at": "now", "titles": {"json": "JSON"}, "failed": []}
    report.save(tmp_path / "r.json", about, rows)
    assert report.load(tmp_path / "r.json") == (about, rows)


def test_an_error_without_a_text_is_reported_too(tmp_path: Path) -> None:
    bench = Bench("", tmp_path, tmp_path, Options(1, 1))
    bench.fail("table", TimeoutError())
    bench.fail("json", ContenderError("first line\nsecond line"))
    assert bench.failed == ["table: TimeoutError", "json: first line"]
