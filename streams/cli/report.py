"""`millstream report from-parquet|from-clickhouse`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from millstream.errors import ConfigError
from millstream.settings import get_settings
from schemas.batch import SLUG, Batch, parse_rfc3339
from schemas.names import cluster_dir
from streams.cli.errors import Group, usage
from streams.cli.showing import bars

if TYPE_CHECKING:
    from schemas import survey
    from sinks.clickhouse.reading import ClickHouseArchive
    from sinks.parquet.reading import ParquetArchive

P = ParamSpec("P")
R = TypeVar("R")

_NEWEST = 5
"""Batches that an error lists."""


@click.group(cls=Group)
def report() -> None:
    """What is in a published batch, and what changed between two: one HTML file that needs nothing else.

    \b
    millstream report from-parquet out --cluster prod
    millstream report from-clickhouse --batch 2026-11-23T08:30:00Z --compare 2026-11-22T08:30:00Z
    """


def _common(command: Callable[P, R]) -> Callable[P, R]:
    """The options that both sources have."""
    for option in (
        click.option(
            "--compare", metavar="BATCH", help="Another batch of the cluster: adds what changed between them."
        ),
        click.option(
            "--output",
            type=click.Path(dir_okay=False, path_type=Path),
            help="The file.  [default: rdb_report_<cluster>_<batch>.html]",
        ),
        click.option("--batch", metavar="BATCH", help="RFC 3339, or as directories are named.  [default: the newest]"),
        click.option("--cluster", help="Its cluster; may be left out if there is one only."),
    ):
        command = option(command)
    return command


@report.command("from-parquet")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@_common
def from_parquet(
    directory: Path, cluster: str | None, batch: str | None, output: Path | None, compare: str | None
) -> None:
    """From the Parquet files that were published to DIR.

    \b
    millstream report from-parquet out --cluster prod --batch 2026-11-23_08-30-00.000Z --output prod.html
    """
    from sinks.parquet.reading import ParquetArchive

    if not directory.is_dir():
        raise click.UsageError(f"{directory}: no such directory; give the one that batches were published to")
    _report(ParquetArchive(directory.absolute()), cluster, batch, output, compare)


@report.command("from-clickhouse")
@click.option(
    "--url",
    envvar="MILLSTREAM_CLICKHOUSE_URL",
    show_envvar=True,
    help="http(s)://user:password@host:port?database=d, or chdb:///absolute/path?database=d (embedded).  [default: "
    "the settings']",
)
@click.option("--proxy-url", envvar="MILLSTREAM_CLICKHOUSE_PROXY_URL", show_envvar=True, help="HTTP proxy on the way.")
@_common
def from_clickhouse(
    url: str | None,
    proxy_url: str | None,
    cluster: str | None,
    batch: str | None,
    output: Path | None,
    compare: str | None,
) -> None:
    """From ClickHouse; every batch that is still there, not the latest one only.

    \b
    export MILLSTREAM_CLICKHOUSE_URL='http://default@127.0.0.1:8123?database=redis'
    millstream report from-clickhouse --cluster prod --batch 2026-11-22T08:30:00Z
    """
    from sinks.clickhouse.config import ClickHouseConfig
    from sinks.clickhouse.reading import ClickHouseArchive
    from sinks.factory import clickhouse_config

    with usage():
        given = ClickHouseConfig.parse(url, proxy_url=proxy_url) if url else None
    if (config := given or clickhouse_config(get_settings())) is None:
        raise click.UsageError("which ClickHouse? Give --url, or set MILLSTREAM_CLICKHOUSE_URL")
    _report(ClickHouseArchive(config), cluster, batch, output, compare)


def _report(
    archive: ParquetArchive | ClickHouseArchive,
    cluster: str | None,
    batch: str | None,
    output: Path | None,
    compare: str | None,
) -> None:
    with usage():
        for named in filter(None, (batch, compare)):
            _check_name(named)
    with archive:
        published = archive.published()
        chosen = choose(published, cluster, batch, archive.where)
        other = choose(published, chosen.cluster, compare, archive.where) if compare is not None else None
        if other == chosen:
            raise ConfigError(f"--compare {compare}: that is the batch itself; name another one of {chosen.cluster!r}")
        path = output or Path(f"rdb_report_{cluster_dir(chosen.cluster)}_{chosen.slug}.html")
        write_report(archive, chosen, other, path)
    click.echo(f"{path}: batch {chosen.rfc3339} of cluster {chosen.cluster!r}")


def write_report(archive: ParquetArchive | ClickHouseArchive, batch: Batch, other: Batch | None, path: Path) -> None:
    """Survey a published batch, compare it with another one, and write the file, whole or not at all."""
    from streams.report import render

    with _progress() as step, _new_file(path) as write:
        # The parts of the bar: one for a survey, or a third each for two and the comparison.
        survey = archive.survey(batch, step(0.0, 1.0 if other is None else 0.33))
        difference = None
        if other is not None:
            second = archive.survey(other, step(0.33, 0.66))
            older, newer = sorted((survey, second), key=lambda s: s.batch.batch_ts)
            difference = archive.difference(older, newer, step(0.66, 1.0))
        write(render(survey, difference, source=archive.where))


def _check_name(wanted: str) -> None:
    """Raises ConfigError unless it is the name of some batch."""
    if SLUG.fullmatch(wanted) is None:
        try:
            parse_rfc3339(wanted)
        except ValueError as exc:
            raise ConfigError(f"batch {exc}, nor a directory's name such as 2026-11-23_08-30-00.000Z") from exc


def choose(published: list[Batch], cluster: str | None, wanted: str | None, where: str) -> Batch:
    """The batch that is meant. Raises ConfigError that lists what there is."""
    if not published:
        raise ConfigError(f"{where} holds no published batch")
    clusters = sorted({b.cluster for b in published})
    if cluster is None and len(clusters) > 1:
        raise ConfigError(f"{where} holds batches of several clusters; choose one by --cluster: {', '.join(clusters)}")
    of = [b for b in published if b.cluster == (cluster if cluster is not None else clusters[0])]
    if not of:
        raise ConfigError(f"{where} holds no published batch of cluster {cluster!r}; there is {', '.join(clusters)}")
    if wanted is None:
        return of[0]
    _check_name(wanted)
    if SLUG.fullmatch(wanted):
        found = [b for b in of if b.slug == wanted]
    else:
        at = parse_rfc3339(wanted)
        found = [b for b in of if b.batch_ts == at]
    if len(found) > 1:
        raise ConfigError(
            f"batch {wanted} may be {' or '.join(b.rfc3339 for b in found)}, which share this name: give the RFC 3339 "
            "time"
        )
    if not found:
        newest = ", ".join(b.rfc3339 for b in of[:_NEWEST])
        more = f" and {len(of) - _NEWEST} older ones" if len(of) > _NEWEST else ""
        raise ConfigError(
            f"{where} holds no published batch {wanted} of cluster {of[0].cluster!r}; there is {newest}{more}"
        )
    return found[0]


@contextmanager
def _progress() -> Iterator[Callable[[float, float], survey.Progress]]:
    with bars() as bar:
        task = bar.add_task("reading", total=1.0)

        def step(begin: float, end: float) -> survey.Progress:
            return lambda what, part: bar.update(task, description=what, completed=begin + (end - begin) * part)

        yield step
        bar.update(task, description="written", completed=1.0)


@contextmanager
def _new_file(path: Path) -> Iterator[Callable[[str], Any]]:
    """What writes the file, by way of one beside it, which is made at once: better told now than after the reading."""
    with usage(), _telling(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    temporary = Path(name)

    def write(text: str) -> None:
        with _telling(path):
            temporary.write_text(text, encoding="utf-8")
            temporary.chmod(0o644)
            temporary.replace(path)

    try:
        yield write
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ConfigError(f"--output {path}: cannot be written: {os.strerror(exc.errno or 0)}") from exc
