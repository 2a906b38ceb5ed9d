"""`millstream dump [--concurrency N] from-… into-parquet|into-clickhouse|feed`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec
from rich.console import Console
from rich.table import Table

from millstream.broker import check_broker
from millstream.errors import ConfigError
from millstream.settings import get_settings
from schemas.batch import Batch
from sinks.clickhouse.config import ClickHouseConfig
from sinks.factory import clickhouse_config
from sources.feed import FeedJob, FeedResult, prepare_topics
from sources.feeders import FeedError, feed_all
from streams.cli.errors import Command, Group, usage
from streams.cli.given import batch_timestamp, give, jobs_of, make_writable, now_ns
from streams.cli.oneshot import OneShot
from streams.cli.progress import DumpProgress, size_of
from streams.cli.redis import from_cluster, from_codis, from_standalone
from streams.ledger import BatchState
from streams.web.serve import served


def default_concurrency() -> int:
    """Half the CPUs, 1 to 8."""
    return max(1, min(8, (os.cpu_count() or 2) // 2))


@click.group(cls=Group)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    default=default_concurrency,
    show_default="half the CPUs, 1 to 8",
    help="Instances that are read at the same time.",
)
@click.pass_context
def dump(ctx: click.Context, concurrency: int) -> None:
    """Dump Redis instances: name a source, then a target.

    \b
    millstream dump from-file --path dump.rdb --cluster prod --instance 10.0.0.1:6379 into-parquet --dir out
    millstream dump from-cluster --nodes 10.0.0.1:7000,10.0.0.2:7000 --cluster prod into-parquet --dir out
    """
    ctx.meta["concurrency"] = concurrency


@click.group("from-file", cls=Group)
@click.option("--path", "paths", multiple=True, required=True, help="An RDB file; repeat it with --instance.")
@click.option("--cluster", required=True, help="Name of the cluster: any text.")
@click.option("--instance", "instances", multiple=True, required=True, help="Whose dump the file is, like IP:port.")
@batch_timestamp
@click.pass_context
def from_file(
    ctx: click.Context, paths: tuple[str, ...], cluster: str, instances: tuple[str, ...], batch_timestamp: int | None
) -> None:
    """From RDB files. Several instances of one batch: as many --path as --instance, in the same order.

    \b
    millstream dump from-file --cluster prod \\
      --path a.rdb --instance 10.0.0.1:6379 \\
      --path b.rdb --instance 10.0.0.2:6379 into-parquet --dir out
    """
    if len(paths) != len(instances):
        raise click.UsageError(
            f"--path and --instance go in pairs: {len(paths)} of --path, {len(instances)} of --instance", ctx
        )
    twice = sorted({i for i in instances if instances.count(i) > 1})
    if twice:
        raise click.UsageError(f"--instance {twice[0]!r} is given twice; every instance has one file", ctx)
    empty = next((n for n, v in (("--cluster", [cluster]), ("--instance", instances)) if "" in v), None)
    if empty:
        raise click.UsageError(f"{empty} must not be empty", ctx)
    if (path := next((Path(p) for p in paths if not Path(p).is_file()), None)) is not None:
        what = "is a directory; give the file" if path.is_dir() else "no such file"
        raise click.UsageError(f"--path {path}: {what}", ctx)
    batch_ts = now_ns() if batch_timestamp is None else batch_timestamp
    jobs = [
        FeedJob(path=p, cluster=cluster, instance=i, batch_ts=batch_ts, instances=list(instances))
        for p, i in zip(paths, instances, strict=True)
    ]
    give(ctx, lambda: jobs)


@click.command("into-parquet", cls=Command)
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    envvar="MILLSTREAM_PARQUET_DIR",
    required=True,
    show_envvar=True,
    help="Directory; the batch becomes <dir>/<cluster>/<batch>/<instance>.parquet.",
)
@click.option(
    "--compression",
    type=click.Choice(["zstd", "snappy", "none"]),
    default=None,
    help="Codec of the columns.  [default: zstd]",
)
@click.option("--sort", is_flag=True, help="Sort each file by (db, key).")
@click.pass_context
def into_parquet(ctx: click.Context, directory: Path, compression: str | None, sort: bool) -> None:
    """Into Parquet files; exits 0 when the batch is published.

    \b
    millstream dump from-file --path dump.rdb --cluster prod --instance 10.0.0.1:6379 \\
      into-parquet --dir out --compression snappy --sort
    """
    sinks = {"PARQUET_DIR": str(directory.absolute())}
    if compression:
        sinks["PARQUET_COMPRESSION"] = compression
    if sort:
        sinks["PARQUET_SORT"] = "true"
    _one_shot(ctx, sinks)


@click.command("into-clickhouse", cls=Command)
@click.option(
    "--url",
    envvar="MILLSTREAM_CLICKHOUSE_URL",
    required=True,
    show_envvar=True,
    help="http(s)://user:password@host:port?database=d, or chdb:///absolute/path?database=d (embedded).",
)
@click.option("--auto-create-tables", is_flag=True, help="Create the tables if none of them exists.")
@click.option("--proxy-url", envvar="MILLSTREAM_CLICKHOUSE_PROXY_URL", show_envvar=True, help="HTTP proxy on the way.")
@click.pass_context
def into_clickhouse(ctx: click.Context, url: str, auto_create_tables: bool, proxy_url: str | None) -> None:
    """Into ClickHouse; exits 0 when the batch is complete there.

    \b
    millstream dump from-file --path dump.rdb --cluster prod --instance 10.0.0.1:6379 \\
      into-clickhouse --url 'http://default@127.0.0.1:8123?database=redis' --auto-create-tables
    """
    with usage():
        config = ClickHouseConfig.parse(url, proxy_url=proxy_url)
    refuse_expired(jobs_of(ctx)[0].batch, config.batch_ttl_days)
    sinks = {"CLICKHOUSE_URL": url}
    if auto_create_tables:
        sinks["CLICKHOUSE_AUTO_CREATE_TABLES"] = "true"
    if proxy_url:
        sinks["CLICKHOUSE_PROXY_URL"] = proxy_url
    _one_shot(ctx, sinks)


@click.command("feed", cls=Command)
@click.option(
    "--expect",
    "expected",
    multiple=True,
    help="An instance of the batch that somebody else feeds: the batch waits for it. May repeat.",
)
@click.option("--new-run", is_flag=True, help="Feed from the start whatever was fed before; the earlier run is void.")
@click.pass_context
def feed(ctx: click.Context, expected: tuple[str, ...], new_run: bool) -> None:
    """Only feed, for workers that run already (`faust -A streams worker`); they publish the batch.

    Killed and started again with the same --batch-timestamp, it goes on where it was.

    \b
    export MILLSTREAM_BOOTSTRAP_SERVERS=kafka:9092
    millstream dump from-file --path dump.rdb --cluster prod --instance 10.0.0.1:6379 \\
      --batch-timestamp 2026-11-23T08:30:00Z feed
    """
    if "" in expected:
        raise click.UsageError("--expect must not be empty", ctx)
    settings = get_settings()
    if not settings.bootstrap_servers:
        raise ConfigError(
            "feed produces for running workers: set MILLSTREAM_BOOTSTRAP_SERVERS=host:port to their Kafka"
        )
    given = jobs_of(ctx)
    _tell_batch(given)
    if (config := clickhouse_config(settings)) is not None:
        refuse_expired(given[0].batch, config.batch_ttl_days)
    manifest = sorted({*given[0].instances, *expected})
    jobs = [msgspec.structs.replace(j, instances=manifest, new_run=new_run) for j in given]

    async def run() -> dict[str, Any]:
        await check_broker(settings)
        await asyncio.to_thread(prepare_topics, settings, jobs)
        return await served(fed)

    async def fed() -> dict[str, Any]:
        with DumpProgress(size_of(jobs), len(jobs)) as bar:
            done = 0

            def on_progress(job: FeedJob, rows: int, at: int) -> None:
                bar.fed(job.instance, rows, at)
                bar.stored(bar.fed_rows, done)

            def on_result(result: FeedResult | FeedError) -> None:
                nonlocal done
                done += isinstance(result, FeedResult) and result.outcome != "aborted"
                bar.stored(bar.fed_rows, done)

            return await feed_all(jobs, ctx.meta["concurrency"], on_progress, on_result=on_result)

    batch, failed = jobs[0].batch, 0
    try:
        results = asyncio.run(run())
    except KeyboardInterrupt:
        _tell_stopped(ctx, batch)
    for instance, result in results.items():
        if not isinstance(result, FeedResult):
            failed += 1
            click.echo(f"{instance}: failed: {result}", err=True)
        elif result.outcome == "aborted":
            failed += 1
            click.echo(f"{instance}: aborted: {result.reason}", err=True)
        else:
            how = {"fed": "fed", "already": "was fed already, nothing to do"}[result.outcome]
            click.echo(f"{instance}: {how}, {result.rows} rows{' (resumed)' if result.resumed else ''}")
    click.echo(f"batch {batch.rfc3339} of cluster {batch.cluster!r}: see `millstream batches`")
    if failed:
        raise ConfigError(
            f"{failed} of {len(jobs)} instances were not fed, so the batch will not be published. Mend them and start "
            f"again with --batch-timestamp {batch.rfc3339}"
        )


def refuse_expired(batch: Batch, ttl_days: int) -> None:
    """Raise ConfigError for a batch that ClickHouse would delete (T37)."""
    age = timedelta(seconds=(time.time_ns() - batch.batch_ts) // 1_000_000_000)
    if age >= timedelta(days=ttl_days):
        raise ConfigError(
            f"--batch-timestamp {batch.rfc3339} is {age.days} days ago: ClickHouse deletes batches after {ttl_days} "
            "days (TTL of its tables). Nothing was fed. Use a later timestamp, or the Parquet target"
        )


def _one_shot(ctx: click.Context, sinks: dict[str, str]) -> None:
    jobs = jobs_of(ctx)
    if (directory := sinks.get("PARQUET_DIR")) is not None:
        make_writable(Path(directory))
    shot, began = OneShot(jobs, sinks, ctx.meta["concurrency"]), time.monotonic()
    _tell_batch(jobs)
    try:
        state = asyncio.run(served(shot.run))
    except KeyboardInterrupt:
        _tell_stopped(ctx, shot.batch)
    _show_published(shot.batch, state, time.monotonic() - began)


def _tell_batch(jobs: Sequence[FeedJob]) -> None:
    batch, count = jobs[0].batch, len(jobs)
    what = f"{count} instance{'s' if count > 1 else ''}"
    click.echo(f"batch {batch.rfc3339} of cluster {batch.cluster!r}, {what}", err=True)


def _tell_stopped(ctx: click.Context, batch: Batch) -> NoReturn:
    click.echo(f"stopped; start again with --batch-timestamp {batch.rfc3339} to go on", err=True)
    ctx.exit(1)


def _show_published(batch: Batch, state: BatchState, seconds: float) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in (
        ("published", batch.rfc3339),
        ("cluster", batch.cluster),
        ("instances", str(len(state.instances))),
        ("records", f"{state.rows:,}"),
        ("took", f"{seconds:.0f} s"),
    ):
        table.add_row(name, value)
    Console().print(table)


for _source in (from_file, from_standalone, from_cluster, from_codis):
    dump.add_command(_source)
    for _target in (into_parquet, into_clickhouse, feed):
        _source.add_command(_target)
