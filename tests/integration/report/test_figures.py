"""Both sources give the figures of a naive reckoning, of past batches too, and of what changed between two."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from millstream.errors import SinkError
from schemas.batch import Batch
from schemas.survey import Difference, Survey
from sinks.clickhouse.config import ClickHouseConfig
from sinks.clickhouse.reading import ClickHouseArchive
from sinks.parquet import difference, reading
from sinks.parquet.reading import ParquetArchive
from tests.integration.report.data import NEWER, OLDER, OTHER, Instances
from tests.support import naive_report
from tests.support.published import publish_parquet

Archive = ParquetArchive | ClickHouseArchive


def quiet(_what: str, _part: float) -> None:
    """No progress."""


@pytest.fixture(params=["parquet", "chdb", "http"])
def archive(request: pytest.FixtureRequest) -> Archive:
    if request.param == "parquet":
        return ParquetArchive(request.getfixturevalue("parquet"))
    return ClickHouseArchive(ClickHouseConfig.parse(request.getfixturevalue(f"{request.param}_url")))


def assert_same(found: Survey | Difference, expected: Survey | Difference) -> None:
    for name in expected.__slots__:
        assert getattr(found, name) == getattr(expected, name), name
    assert found == expected


@pytest.mark.parametrize("batch", [OLDER, NEWER, OTHER], ids=["older", "newer, recorded slots", "codis"])
def test_a_survey_is_that_of_a_naive_reckoning(
    archive: Archive, batches: dict[Batch, Instances], batch: Batch
) -> None:  # T34, T38, T41
    rows = naive_report.rows_of(batches[batch])
    with archive:
        told: list[float] = []
        found = archive.survey(batch, lambda _, part: told.append(part))
    assert_same(found, naive_report.survey(batch, rows))
    assert found.prefixes
    assert [k.type for k in found.big] == ["hash", "string"]
    assert told == sorted(told)
    assert told[-1] <= 1


def test_what_changed_is_that_of_a_naive_reckoning(archive: Archive, batches: dict[Batch, Instances]) -> None:
    before, after = (naive_report.rows_of(batches[b]) for b in (OLDER, NEWER))
    with archive:
        surveys = [archive.survey(batch, quiet) for batch in (OLDER, NEWER)]
        found = archive.difference(*surveys, quiet)
    assert_same(found, naive_report.difference(OLDER, before, NEWER, after))
    assert set(found.top) == {"new", "gone", "grown", "shrunk", "expired", "expiring"}


def test_all_published_batches_are_found_the_newest_first(archive: Archive) -> None:
    with archive:
        assert archive.published() == [NEWER, OTHER, OLDER]  # to the nanosecond (T36)


def test_a_comparison_that_spills_to_several_files_is_the_same(parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ParquetArchive(parquet) as archive:
        surveys = [archive.survey(batch, quiet) for batch in (OLDER, NEWER)]
        whole = archive.difference(*surveys, quiet)
        monkeypatch.setattr(difference, "SPILL_ROWS", 100)
        assert_same(archive.difference(*surveys, quiet), whole)


def test_prefixes_are_looked_for_again_where_too_few_keys_were_drawn(
    parquet: Path, monkeypatch: pytest.MonkeyPatch, batches: dict[Batch, Instances]
) -> None:
    class Unlucky(reading.KeySample):
        draws = 0

        def drawn(self) -> set[bytes]:
            type(self).draws += 1
            return super().drawn() if self.draws > 1 else set()

    monkeypatch.setattr(reading, "KeySample", Unlucky)
    with ParquetArchive(parquet) as archive:
        found = archive.survey(OLDER, quiet)
    assert Unlucky.draws == 2
    assert found.prefixes == naive_report.survey(OLDER, naive_report.rows_of(batches[OLDER])).prefixes


def test_a_sorted_batch_gives_the_same_figures(tmp_path: Path, batches: dict[Batch, Instances]) -> None:
    batch = replace(NEWER, cluster="sorted")
    publish_parquet(tmp_path, {batch: batches[NEWER]}, sort=True, compression="none")
    with ParquetArchive(tmp_path) as archive:
        assert_same(archive.survey(batch, quiet), naive_report.survey(batch, naive_report.rows_of(batches[NEWER])))


def test_a_full_disk_for_temporary_files_is_told_with_what_to_do(
    parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with ParquetArchive(parquet) as archive:
        surveys = [archive.survey(batch, quiet) for batch in (OLDER, NEWER)]
        monkeypatch.setattr(difference.ipc, "new_stream", full)
        with pytest.raises(SinkError, match=r"no room to compare.*No space left.*TMPDIR"):
            archive.difference(*surveys, quiet)


def test_a_batch_that_is_taken_away_meanwhile_is_told(tmp_path: Path, batches: dict[Batch, Instances]) -> None:
    publish_parquet(tmp_path, {OTHER: batches[OTHER]})
    with ParquetArchive(tmp_path) as archive:
        files = archive.files(OTHER)
        shutil.rmtree(tmp_path / OTHER.cluster)
        with pytest.raises(SinkError, match="taken away"):
            archive.survey(OTHER, quiet)
        with pytest.raises(SinkError, match=r"parquet cannot be read"):
            list(files[0].tables(["key"]))
