"""`millstream replay`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from millstream.settings import get_settings
from streams.cli.connected import check_kafka
from streams.cli.errors import Command, usage

if TYPE_CHECKING:
    from streams.replay.run import Outcome


@click.command(cls=Command)
@click.option("--from", "start", metavar="TIME", help="The topic, from this time on (RFC 3339), or `beginning`.")
@click.option("--offset", metavar="P:O[,P:O…]", help="The topic: these partitions, from these offsets on.")
@click.option("--outbox", is_flag=True, help="The outbox table, published or not. Needs no Kafka.")
@click.option("--since", metavar="TIME", help="With --outbox: events that occurred from then on.")
@click.option("--rebuild", is_flag=True, help="Into a new table beside the live one, and compare the two.")
@click.option("--swap", is_flag=True, help="With --rebuild: then put the new table into the place of the live one.")
@click.option("--force", is_flag=True, help="With --swap: also if the live one has events that could not be read.")
@click.option("--drop", "drop_it", is_flag=True, help="Remove the table that a rebuild has left, and do nothing else.")
@click.option("--rate", type=click.IntRange(1, 10_000_000), metavar="N", help="Events per second at most.")
@click.option("--resume/--no-resume", default=True, show_default=True, help="Go on where a replay like this was ended.")
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would be read and what would change.")
def replay(
    start: str | None,
    offset: str | None,
    outbox: bool,
    since: str | None,
    rebuild: bool,
    swap: bool,
    force: bool,
    drop_it: bool,
    rate: int | None,
    resume: bool,
    dry_run: bool,
) -> None:
    """Read events of videos again, up to where their source ends now, into the projection. Workers may run beside it.

    \b
    millstream replay --from 2026-11-23T08:30:00Z --dry-run
    millstream replay --offset 0:17,3:200 --rate 2000
    millstream replay --from beginning --rebuild          # build anew, compare
    millstream replay --from beginning --rebuild --swap   # go on with it, catch up, exchange
    """
    from streams.cli.progress import ReplayProgress
    from streams.replay.plan import TopicPlan, make_plan
    from streams.replay.run import Replay, drop

    settings = get_settings()
    if drop_it:
        if start or offset or outbox or since or rebuild or swap or force or rate or dry_run or not resume:
            raise click.UsageError("--drop goes alone")
        standing = asyncio.run(drop(settings))
        click.echo("there was none" if standing is None else f"dropped: {standing}")
        return
    with usage():
        plan = make_plan(start, offset, outbox, since)
    if (swap and not rebuild) or (force and not swap):
        raise click.UsageError("--swap goes with --rebuild, --force with --swap")
    if swap and dry_run:
        raise click.UsageError("--dry-run does not swap: leave out one of the two")
    if isinstance(plan, TopicPlan):
        check_kafka(settings)
    with ReplayProgress() as progress:
        run = Replay(settings, plan, rate, resume, progress.show)
        if dry_run:
            outcome = asyncio.run(run.dry(rebuild=rebuild))
        elif rebuild:
            outcome = asyncio.run(run.rebuild(swap=swap, force=force))
        else:
            outcome = asyncio.run(run.live())
    for line in _told(outcome, rebuild=rebuild, dry=dry_run):
        click.echo(line)


def _told(outcome: Outcome, *, rebuild: bool, dry: bool) -> list[str]:
    from sinks.postgres.shadow import KINDS

    counts, diff = outcome.counts, outcome.diff or {}
    lines = [*(f"note: {note}" for note in outcome.notes), f"events read: {counts['records']}"]
    if not rebuild:
        lines += [f"new to the projection: {counts['applied']}", f"known before: {counts['duplicates']}"]
    lines += [
        f"{name}: {counts[key]}"
        for key, name in (
            ("conflicts", "conflicts (recorded)"),
            ("errors", "refused (recorded)"),
            ("undecodable", "undecodable (they are in the .dlq topic since they were first read)"),
        )
        if counts[key]
    ]
    if not rebuild:
        for kind in ("created", "changed"):
            if dry:
                found = diff.get(kind)
                lines.append(
                    f"rows that would be {kind}: {found.rows if found else 0}{_keys(found.first if found else [])}"
                )
            else:
                lines.append(f"rows {kind}: {counts[kind]}")
        return lines
    for kind, meaning in KINDS.items():
        found = diff.get(kind)
        if found or kind in ("missing", "extra", "different"):
            lines.append(f"{kind}: {found.rows if found else 0} ({meaning}){_keys(found.first if found else [])}")
    if outcome.swapped:
        if outcome.given_up:
            lines.append(f"given up: {outcome.given_up} events that the live projection had")
        lines.append("swapped: the rebuilt projection is the live one")
    elif not dry:
        lines.append(
            "kept beside the live one: run it again with --swap to exchange them, or with --drop alone to drop it"
        )
    return lines


def _keys(first: list[str]) -> str:
    return ": " + ", ".join(first) if first else ""
