"""`millstream dlq`: dead letters listed, looked at, sent again, dropped."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from millstream.errors import ConfigError
from millstream.settings import get_settings

if TYPE_CHECKING:
    from streams.letters import Letters
from streams.cli.connected import check_kafka


@click.group()
def dlq() -> None:
    """Records that could not be processed: list, show, requeue, drop.

    TOPIC is the topic that they came from, or its `.dlq`. An id is a place in the dead-letter topic, as 0:17.

    \b
    millstream dlq list catalog.video.events
    millstream dlq show catalog.video.events 0:17
    millstream dlq requeue catalog.video.events 0:17 0:18
    millstream dlq drop catalog.video.events --all
    """


@dlq.command("list")
@click.argument("topic")
@click.option("--all", "everything", is_flag=True, help="Also those that were requeued or dropped.")
@click.option("--json", "as_lines", is_flag=True, help="One JSON object per line.")
def list_(topic: str, everything: bool, as_lines: bool) -> None:
    """List the dead letters of a topic that wait for a decision.

    \b
    millstream dlq list catalog.video.events
    """
    from streams.letters import as_json, shown

    letters = [found for found in _letters(topic).all() if everything or not found.handled]
    for found in letters:
        if as_lines:
            click.echo(json.dumps(as_json(found)))
        else:
            where = f"{found.note('topic')}-{found.note('partition')}@{found.note('offset')}"
            handled = f"  ({found.handled})" if found.handled else ""
            click.echo(f"{found.id}  {where}  key {shown(found.key)}  {found.note('reason')}{handled}")
    if not letters and not as_lines:
        click.echo("no dead letters")


@dlq.command()
@click.argument("topic")
@click.argument("letter")
def show(topic: str, letter: str) -> None:
    """Show one dead letter whole, as JSON. Bytes that are no text are given as hex:…

    \b
    millstream dlq show catalog.video.events 0:17
    """
    from streams.letters import as_json

    for found in _letters(topic).all():
        if found.id == letter:
            click.echo(json.dumps(as_json(found, whole=True), indent=2))
            return
    raise ConfigError(f"there is no letter {letter!r}: `millstream dlq list {topic} --all` shows their ids")


@dlq.command()
@click.argument("topic")
@click.argument("letters", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that wait.")
def requeue(topic: str, letters: tuple[str, ...], everything: bool) -> None:
    """Send dead letters to their topic again, each once, with their own key, headers and partition.

    They pass the same checks as before: mend what refused them first. One that is refused again is a new letter.

    \b
    millstream dlq requeue catalog.video.events 0:17 0:18
    """
    _handle(topic, letters, everything, "requeue")


@dlq.command()
@click.argument("topic")
@click.argument("letters", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that wait.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(topic: str, letters: tuple[str, ...], everything: bool, yes: bool) -> None:
    """Give dead letters up: they are not offered again. Kafka keeps them until the topic's retention ends.

    \b
    millstream dlq drop catalog.video.events 0:17
    """
    _check_which(letters, everything)
    if not yes:
        click.confirm(f"Drop {'all dead letters' if everything else ', '.join(letters)} of {topic}?", abort=True)
    _handle(topic, letters, everything, "drop")


def _letters(topic: str) -> Letters:
    from streams.letters import Letters

    settings = get_settings()
    check_kafka(settings)
    return Letters(settings, topic)


def _check_which(ids: tuple[str, ...], everything: bool) -> None:
    if bool(ids) == everything:
        raise click.UsageError("give ids, or --all")


def _handle(topic: str, ids: tuple[str, ...], everything: bool, verb: str) -> None:
    _check_which(ids, everything)
    letters = _letters(topic)
    if everything:
        ids = tuple(found.id for found in letters.all() if not found.handled)
    done = 0
    if ids:
        done = letters.requeue(ids) if verb == "requeue" else letters.drop(ids)
    click.echo(f"{'requeued' if verb == 'requeue' else 'dropped'}: {done}, handled before: {len(set(ids)) - done}")
