"""The program `millstream`; its commands are also under `faust -A streams`."""

from __future__ import annotations

import click

from millstream.logs import configure
from millstream.settings import get_settings
from millstream.start import without_pandas
from streams.cli.batches import batches
from streams.cli.demo import demo
from streams.cli.demo_changefeed import demo_changefeed
from streams.cli.dlq import dlq
from streams.cli.dump import dump
from streams.cli.errors import VERBOSE, Group
from streams.cli.etl import etl
from streams.cli.migrate import migrate
from streams.cli.misc import misc
from streams.cli.outbox import outbox
from streams.cli.replay import replay
from streams.cli.report import report
from streams.cli.reset import reset
from streams.cli.verify import verify


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="millstream", message="millstream %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error, and log more.")
@click.pass_context
def cli(ctx: click.Context, verbose: bool) -> None:
    """Redis dumps through Kafka into Parquet and ClickHouse, exactly once.

    Settings are environment variables MILLSTREAM_… or keys of millstream.toml; without
    MILLSTREAM_BOOTSTRAP_SERVERS one-shot commands start a Kafka of their own.

    \b
    First look:      millstream demo
    One dump:        millstream dump from-file --path dump.rdb --cluster prod --instance 10.0.0.1:6379 \\
                       into-parquet --dir out
    Running workers: faust -A streams worker
                     millstream dump from-file … feed
                     millstream batches
    A look at it:    millstream report from-parquet out
    """
    ctx.meta[VERBOSE] = verbose
    # A command says what it does itself; what its libraries log is of use when something goes wrong.
    configure(get_settings().model_copy(update={"log_level": "info" if verbose else "error"}))


for _command in (dump, batches, dlq, misc, demo, demo_changefeed, reset, migrate, outbox, etl, replay, report, verify):
    cli.add_command(_command)


def register(group: click.Group) -> None:
    """Add our commands to another program's group; its own ones of the same name stay."""
    for name, command in cli.commands.items():
        if name not in group.commands:
            group.add_command(command)


def main() -> None:
    """Entry point. Exit code 0: done, 1: failed, 2: wrong usage."""
    without_pandas()
    cli(prog_name="millstream")
