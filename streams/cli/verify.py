"""`millstream verify`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from millstream.errors import ConfigError
from millstream.settings import Settings, get_settings
from streams.cli.connected import check_kafka
from streams.cli.errors import Group
from streams.cli.etl import staging_table

if TYPE_CHECKING:
    from streams.verify.compare import Verdict

DIFFERENT = 3
"""Exit code: something differs."""

_ranges = click.option(
    "--key-ranges", "ranges", type=click.IntRange(1, 65_536), default=256, show_default=True, metavar="N",
    help="Checksums per side; more of them mean fewer keys to look at where something differs.",
)  # fmt: skip
_repair = click.option("--repair", is_flag=True, help="Mend the keys that differ, and no others.")
_topic = click.option("--topic/--no-topic", default=True, show_default=True, help="Also compare with the topic.")
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object per comparison and line, with all keys.")


@click.group(cls=Group)
def verify() -> None:
    """Compare what a sink holds with its source and its topic. Exit code 0: equal, 3: different.

    \b
    millstream verify projection
    millstream verify products --repair
    millstream verify batch prod 2026-11-23T08:30:00Z
    """


@verify.command()
@_ranges
@_repair
@_topic
@click.option("--grace", type=click.FloatRange(min=0), default=60.0, show_default=True, metavar="SECONDS",
              help="An event published longer ago should be applied; only asked for without the topic.")  # fmt: skip
@_json
def projection(ranges: int, repair: bool, topic: bool, grace: float, as_json: bool) -> None:
    """The projection of videos against catalog.videos, and against what the events of the topic add up to.

    \b
    millstream verify projection
    millstream verify projection --repair --key-ranges 4096
    """
    settings = get_settings()
    if topic:
        check_kafka(settings)
    _end(asyncio.run(_projection(settings, ranges, repair, topic, grace)), as_json)


@verify.command()
@_ranges
@_repair
@_topic
@staging_table
@_json
def products(ranges: int, repair: bool, topic: bool, table: str, as_json: bool) -> None:
    """shop.products against the staging table, and against the rows of the last run in the topic.

    \b
    millstream verify products --repair
    """
    settings = get_settings()
    if topic and (topic := settings.bootstrap_servers is not None):
        check_kafka(settings)
    _end(asyncio.run(_products(settings, ranges, repair, topic, table)), as_json)


@verify.command()
@click.argument("cluster")
@click.argument("batch")
@_ranges
@_json
def batch(cluster: str, batch: str, ranges: int, as_json: bool) -> None:
    """The batch BATCH (its RFC 3339 time) of CLUSTER: Parquet, ClickHouse and the archive's counts of its topics.

    \b
    millstream verify batch prod 2026-11-23T08:30:00Z
    """
    from schemas.batch import Batch, parse_rfc3339
    from streams.cli.states import States
    from streams.verify.batch import BatchLook

    settings = get_settings()
    try:
        which = Batch(cluster, parse_rfc3339(batch))
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="BATCH") from exc
    facts = None
    if settings.bootstrap_servers:
        check_kafka(settings)
        with States(settings) as states:
            if (found := states.load().batch(which.key)) is not None:
                known = {i: states.instance(which.key, i) for i in found.instances}
                facts = {i: state.rows if state else 0 for i, state in known.items()}
    _end(asyncio.run(BatchLook(settings, which, ranges, facts).look()), as_json)


async def _projection(settings: Settings, ranges: int, repair: bool, topic: bool, grace: float) -> list[Verdict]:
    from millstream.postgres import connect, naming, postgres_url
    from schemas.postgres import require_migrated
    from streams.cli.progress import ReplayProgress
    from streams.replay.run import own
    from streams.verify.projection import Projection
    from streams.verify.repair import by_new_events, from_events

    url = postgres_url(settings)
    with naming("verify the projection", url):
        async with connect(url, "millstream-verify") as looking, connect(url, "millstream-verify") as mending:
            await require_migrated(looking)
            with ReplayProgress("verify") as progress:
                look = Projection(settings, looking, ranges, grace, progress.show)
                if topic:
                    await look.read_topic()
            verdicts = await look.look()
            if not (repair and _keys(verdicts)):
                return verdicts
            if not verdicts[0].rows and verdicts[0].extra:
                raise ConfigError("catalog.videos has no rows: a repair would delete every video. Fill the table first")
            await own(mending)
            wrong = _keys(verdicts)
            await from_events(mending, look.topic() if topic else None, wrong)
            left = await look.by_source()
            told = await by_new_events(mending, [key for key in left.keys if key in set(wrong)])
            verdicts = await look.look()
            _mended(verdicts, wrong, f"; of {told} no event told: new ones are in the outbox" if told else "")
            return verdicts


async def _products(settings: Settings, ranges: int, repair: bool, topic: bool, table: str) -> list[Verdict]:
    from millstream.postgres import connect, naming, postgres_url
    from schemas.postgres import require_migrated
    from sinks.postgres.products import UNIQUE_SQL, has_unique_key
    from sources.staging import StagingReader, check_staging
    from streams.verify.products import ProductsLook

    url = postgres_url(settings)
    with naming("verify products", url):
        async with connect(url, "millstream-verify") as looking, connect(url, "millstream-verify") as mending:
            await require_migrated(looking)
            reader = StagingReader(looking, table)
            await check_staging(reader, unique=await has_unique_key(looking), unique_sql=UNIQUE_SQL)
            look = ProductsLook(settings, looking, table, ranges, topic)
            verdicts = await look.look()
            if repair and (wrong := _keys(verdicts)):
                await look.repair(mending, wrong)
                verdicts = await look.look()
                _mended(verdicts, wrong)
            return verdicts


def _keys(verdicts: Sequence[Verdict]) -> list[str]:
    return sorted({key for verdict in verdicts for key in verdict.keys})


def _mended(verdicts: Sequence[Verdict], wrong: Sequence[str], more: str = "") -> None:
    left = set(_keys(verdicts))
    click.echo(f"repaired: {sum(key not in left for key in wrong)} of {len(wrong)} keys{more}", err=True)


def _end(verdicts: Sequence[Verdict], as_json: bool) -> None:
    different = any(verdict.keys for verdict in verdicts)
    for verdict in verdicts:
        if as_json:
            click.echo(json.dumps(verdict.__dict__, ensure_ascii=False))
        else:
            for line in verdict.told():
                click.echo(line)
    if not as_json:
        click.echo("different" if different else "equal")
    if different:
        raise click.exceptions.Exit(DIFFERENT)
