"""`millstream migrate`."""

from __future__ import annotations

import asyncio

import click

from millstream.settings import get_settings


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if a migration is pending.")
@click.option("--print", "show", is_flag=True, help="Print the SQL of the whole schema, and change nothing.")
def migrate(check: bool, show: bool) -> None:
    """Bring the Postgres schema up to date. Safe to run again, and by several at once.

    \b
    MILLSTREAM_POSTGRES_URL=postgresql://me@db:5432/shop millstream migrate
    """
    from millstream.postgres import postgres_url
    from schemas.postgres import schema_sql

    if show and check:
        raise click.UsageError("--print goes without --check: it asks no database")
    if show:
        click.echo(schema_sql(), nl=False)
        return
    left = asyncio.run(_run(postgres_url(get_settings()), check))
    for name in left:
        click.echo(f"{'pending' if check else 'applied'}: {name}")
    if not left:
        click.echo("up to date")
    if check and left:
        raise click.exceptions.Exit(1)


async def _run(url: str, check: bool) -> list[str]:
    from millstream.postgres import connect, naming
    from schemas.postgres import migrate as apply
    from schemas.postgres import pending

    async with connect(url) as connection:
        with naming("migrate", url):
            return [m.name for m in await pending(connection)] if check else await apply(connection)
