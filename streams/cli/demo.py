"""`millstream demo`: the whole job on generated and real dumps, into Parquet and ClickHouse at once."""

from __future__ import annotations

import asyncio
import runpy
import sys
from pathlib import Path

import click
import pyarrow.parquet as pq
from rich.console import Console

from millstream.errors import ConfigError
from schemas.batch import Batch
from schemas.names import batch_dir, instance_file
from sinks.clickhouse.config import ClickHouseConfig
from sinks.parquet.reading import ParquetArchive
from sources.feed import FeedJob
from streams.cli.dump import default_concurrency
from streams.cli.given import make_writable, now_ns
from streams.cli.oneshot import OneShot
from streams.cli.report import write_report
from streams.cli.showing import next_steps, table

CLUSTER = "demo"
GENERATED = ("10.0.0.1:6379", "10.0.0.2:6379", "10.0.0.3:6379")
REAL = {
    "redis6.2": "redis6.2-all.rdb",
    "redis7.0": "redis7.0-all.rdb",
    "redis8.2": "redis8.2-all.rdb",
    "valkey9": "valkey9-all.rdb",
}
"""Instance -> file of tests/fixtures/rdb, written by the real server."""
_CHECKOUT = Path(__file__).resolve().parents[2]


@click.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Where dumps, Parquet files and the embedded ClickHouse go.",
)
@click.option(
    "--keys",
    type=click.IntRange(0, 100_000_000),
    default=200_000,
    show_default=True,
    help="Keys of each of the three generated dumps.",
)
def demo(directory: Path, keys: int) -> None:
    """Real dumps through Kafka into Parquet and embedded ClickHouse, and a look at both.

    \b
    millstream demo --keys 1000000
    """
    directory = directory.absolute()
    make_writable(directory)
    batch_ts = now_ns()
    files = _files(directory / "dumps", keys)
    jobs = [
        FeedJob(path=str(p), cluster=CLUSTER, instance=i, batch_ts=batch_ts, instances=list(files))
        for i, p in files.items()
    ]
    url = f"chdb://{directory / 'clickhouse'}?database=millstream"
    sinks = {
        "PARQUET_DIR": str(directory / "parquet"),
        "CLICKHOUSE_URL": url,
        "CLICKHOUSE_AUTO_CREATE_TABLES": "true",
    }
    shot = OneShot(jobs, sinks, default_concurrency())
    out = Console()
    out.print(f"{len(jobs)} Redis instances, batch {shot.batch.rfc3339}: RDB files -> Kafka -> Parquet and ClickHouse")
    state = asyncio.run(shot.run())
    published = batch_dir(directory / "parquet", shot.batch)
    in_clickhouse = asyncio.run(_count(url, shot.batch))
    with ParquetArchive(directory / "parquet") as archive:
        write_report(archive, shot.batch, None, directory / "report.html")
    rows = [
        (
            instance,
            pq.read_metadata(published / f"{instance_file(instance)}.parquet").num_rows,
            in_clickhouse.get(instance, 0),
        )
        for instance in files
    ]
    title = f"Rows per instance, read back ({state.rows:,} in all)"
    out.print(table(title, ("instance", "Parquet", "ClickHouse"), rows))
    out.print(
        f"Parquet:    {published}\nClickHouse: {directory / 'clickhouse'} (embedded, database millstream)\n"
        f"Report:     {directory / 'report.html'}\n",
        soft_wrap=True,
    )
    commands = (
        f'{sys.executable} -c "import pyarrow.parquet as pq; '
        f"print(pq.read_table('{published}').slice(0, 5).to_pylist())\"",
        f"millstream dump from-file --path {next(iter(files.values()))} --cluster mine --instance 10.0.0.1:6379 "
        f"into-parquet --dir {directory / 'mine'} --sort",
        "make kafka     # leave a broker running, then: faust -A streams worker; millstream batches",
    )
    next_steps(out, commands)
    if differ := [name for name, a, b in rows if a != b]:
        raise ConfigError(f"Parquet and ClickHouse differ for {', '.join(differ)}: this is a bug, please report it")


def _files(directory: Path, keys: int) -> dict[str, Path]:
    """Instance -> RDB file; the generated ones are made once."""
    writer = _CHECKOUT / "bench" / "make_rdb.py"
    fixtures = _CHECKOUT / "tests" / "fixtures" / "rdb"
    if not writer.is_file() or not fixtures.is_dir():
        raise ConfigError(f"the demo needs a checkout of the repository: {writer} is not there")
    directory.mkdir(parents=True, exist_ok=True)
    found = {}
    for seed, instance in enumerate(GENERATED, 1):
        path = directory / f"mixed-{keys}-{seed}.rdb"
        if not path.exists():
            part = path.with_suffix(".part")
            runpy.run_path(str(writer))["write_mixed"](part, keys, seed)
            part.rename(path)
        found[instance] = path
    return found | {f"{name}:6379": fixtures / file for name, file in REAL.items()}


async def _count(url: str, batch: Batch) -> dict[str, int]:
    """Rows per instance in the embedded ClickHouse; no worker has it open now."""
    from sinks.clickhouse import ClickHouseBatches

    sink = ClickHouseBatches(ClickHouseConfig.parse(url))
    await sink.open()
    try:
        return await sink.count_by_instance(batch)
    finally:
        await sink.close()
