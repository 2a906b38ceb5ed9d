"""`millstream misc`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from streams.cli.errors import Group, usage


@click.group(cls=Group)
def misc() -> None:
    """The DDL for ClickHouse, completion for shells.

    \b
    millstream misc clickhouse-schema --database redis | clickhouse-client -n
    """


@misc.command("clickhouse-schema")
@click.option("--database", default="default", show_default=True, help="Name of the database.")
def clickhouse_schema(database: str) -> None:
    """Print the DDL of the tables and the view.

    \b
    millstream misc clickhouse-schema --database redis | clickhouse-client -n
    """
    from sinks.clickhouse import schema_ddl

    with usage():
        ddl = schema_ddl(database)
    click.echo(ddl, nl=False)


@misc.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    eval "$(millstream misc completion bash)"
    """
    from streams.cli import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "millstream", "_MILLSTREAM_COMPLETE").source())
