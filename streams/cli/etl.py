"""`millstream etl`."""

from __future__ import annotations

import asyncio
from functools import partial

import click

from millstream import tracing
from millstream.settings import get_settings
from streams.cli.errors import Group, usage
from streams.web.serve import served


def _plain(_ctx: click.Context, _param: click.Parameter, table: str) -> str:
    from sources.staging.reader import check_name

    with usage():
        check_name(table)
    return table


staging_table = click.option(
    "--table",
    default="shop.products_staging",
    show_default=True,
    callback=_plain,
    help="The staging table; it is only read.",
)


@click.group(cls=Group)
def etl() -> None:
    """Products: from the staging table into the catalogue, and on to whoever follows its changes.

    \b
    millstream etl products --dry-run
    """


@etl.command()
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Rows of one batch.")
@click.option("--max-rows", type=click.IntRange(1), help="Rows in all, those of the overlap not counted.")
@click.option("--resume/--no-resume", default=True, show_default=True, help="From the watermark, or the whole table.")
@click.option("--once/--follow", default=True, show_default=True, help="End when all is read, or wait for more.")
@click.option("--on-error", type=click.Choice(["stop", "dlq"]), default="stop", show_default=True,
              help="A row that cannot become a product: end before its batch, or put it aside and go on.")  # fmt: skip
@click.option("--detect-deletes", is_flag=True, help="Also delete products that the table no longer has.")
@click.option("--feed-only", is_flag=True, help="Workers with streams.products are running: start none.")
@click.option("--dry-run", is_flag=True, help="Write nothing anywhere, start nothing; say what would change.")
@staging_table
def products(
    limit: int,
    max_rows: int | None,
    resume: bool,
    once: bool,
    on_error: str,
    detect_deletes: bool,
    feed_only: bool,
    dry_run: bool,
    table: str,
) -> None:
    """Bring what changed in the staging table into shop.products, its change log and the watermark.

    \b
    MILLSTREAM_POSTGRES_URL=postgresql://me@db:5432/shop millstream etl products
    millstream etl products --dry-run
    millstream etl products --feed-only --follow --on-error dlq
    """
    from streams.cli.products import ProductsRun

    if dry_run and not once:
        raise click.UsageError("--dry-run goes without --follow: it looks once")
    settings = get_settings()
    run = ProductsRun(
        settings, table=table, limit=limit, max_rows=max_rows, resume=resume, stop_on_error=on_error == "stop",
        detect_deletes=detect_deletes,
    )  # fmt: skip
    with tracing.on(settings, "etl"):
        doing = run.dry() if dry_run else served(partial(run.run, feed_only=feed_only, follow=not once))
        lines = asyncio.run(doing)
    for line in lines:
        click.echo(line)


@etl.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=500, show_default=True, help="Changes of one batch.")
def changes(limit: int) -> None:
    """Publish pending changes of products to products.changes, and mark them. Exit code 1 if any were given up.

    \b
    millstream etl changes
    """
    from sources.staging.changes import publish_changes

    settings = get_settings()
    with tracing.on(settings, "etl"):
        done = asyncio.run(publish_changes(settings, limit))
    click.echo(f"published: {done.published}")
    for text in done.failed:
        click.echo(f"failed: {text}")
    if done.failed:
        raise click.exceptions.Exit(1)
