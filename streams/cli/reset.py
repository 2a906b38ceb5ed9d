"""`millstream reset`: set a stream back to the beginning of its topic, on purpose."""

from __future__ import annotations

import click

from millstream.cluster import TP
from millstream.errors import ConfigError
from streams.cli.connected import check_kafka
from streams.engine.reset import Resetter
from streams.engine.topology import Topology


@click.command()
@click.option("--topic", "topics", multiple=True, required=True, help="Topic to read again; may be repeated.")
@click.option("--keep-tables", is_flag=True, help="Leave the tables as they are: they will count records twice.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset(topics: tuple[str, ...], keep_tables: bool, yes: bool) -> None:
    """Set a stream back to the beginning of its topic.

    For positions that were lost (the group was empty for longer than the broker keeps offsets), topics that lost
    records, or a stream that is to be computed again. All workers must be stopped. Sinks keep what they hold: remove it
    there, or rows stand twice, under another epoch.

    \b
    millstream reset --topic orders
    """
    from streams import app

    check_kafka(app.settings)
    resetter = Resetter(app.cluster, app.registry, app.conf.id)
    app.cluster.create([app.registry.declaration(app.settings)])
    changelogs = {t.topic for t in app.changelogs_of([TP(topic, 0) for topic in topics])}
    if changelogs and not keep_tables and (others := _sharing(app.topology, topics)):
        raise ConfigError(
            f"a table of {', '.join(topics)} is fed by {', '.join(sorted(others))} too, and would begin empty: reset "
            "these topics together, or give --keep-tables"
        )
    planned = resetter.plan(topics, [] if keep_tables else changelogs)
    for tp, position in planned.positions.items():
        click.echo(f"{tp.topic}-{tp.partition}: to offset {position.offset}, epoch {position.epoch}")
    for name in planned.changelogs:
        click.echo(f"{name}: deleted, its table begins empty")
    if not yes:
        click.confirm("Go on?", abort=True)
    resetter.run(planned)
    click.echo("done; start the workers")


def _sharing(topology: Topology, topics: tuple[str, ...]) -> set[str]:
    """Other topics whose agents change the same tables."""
    families = {s.family for t in topics if (s := topology.source_of(t)) is not None}
    return {s.label for s in topology.sources if s.family in families and not any(s.matches(t) for t in topics)}
