"""`millstream outbox`."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar
from uuid import UUID

import click

from millstream import tracing
from millstream.errors import ConfigError
from millstream.settings import Settings, get_settings, override_settings
from streams.cli.connected import check_kafka
from streams.cli.errors import Group
from streams.web.serve import served

if TYPE_CHECKING:
    from millstream.postgres import Connection

T = TypeVar("T")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
VIA = click.Choice(["polling", "replication"])


def duration(text: str) -> float:
    """Seconds of `90s`, `15m`, `12h`, `7d`. Raises click.BadParameter."""
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None:
        raise click.BadParameter(f"{text!r}: write a number with s, m, h or d behind it, such as 7d")
    return int(match[1]) * _UNITS[match[2]]


def time(text: str) -> datetime:
    """RFC 3339, with an offset. Raises click.BadParameter."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise click.BadParameter(f"{text!r}: write a time with its offset, such as 2026-11-23T08:30:00Z")
    return found


@click.group(cls=Group)
def outbox() -> None:
    """Events of the Postgres outbox: bring them to Kafka, look at them, publish some again.

    \b
    millstream outbox relay
    """


@outbox.command()
@click.option("--via", type=VIA, help="How to learn of events (default: MILLSTREAM_OUTBOX_VIA, polling).")
@click.option("--create-slot", is_flag=True, help="With replication: make publication and slot if they are missing.")
@click.option("--once", is_flag=True, help="With polling: publish what there is, then end.")
@click.option(
    "--metrics-port", type=click.IntRange(1, 65535), help="Serve /metrics there (default: MILLSTREAM_METRICS_PORT)."
)
def relay(via: str | None, create_slot: bool, once: bool, metrics_port: int | None) -> None:
    """Publish events until SIGTERM. Several may run; of those via replication, one is active.

    \b
    MILLSTREAM_POSTGRES_URL=postgresql://me@db:5432/shop MILLSTREAM_BOOTSTRAP_SERVERS=kafka:9092 \\
      millstream outbox relay
    millstream outbox relay --via replication --create-slot --metrics-port 9101
    """
    from millstream.logs import configure
    from millstream.postgres import postgres_url
    from sources.outbox import PollingRelay, ReplicationRelay

    given = {"outbox_via": via, "metrics_port": metrics_port}
    changed = {name: value for name, value in given.items() if value is not None}
    with override_settings(**changed) as settings:
        configure(settings)
        replication = settings.outbox_via == "replication"
        if create_slot and not replication:
            raise click.UsageError("--create-slot goes with --via replication: polling needs no slot")
        if once and replication:
            raise click.UsageError("--once goes with --via polling: a replication slot has no end")
        url = postgres_url(settings)
        check_kafka(settings)

        async def relayed() -> None:
            made = ReplicationRelay(settings, url) if replication else PollingRelay(settings, url)
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, made.stop)
            if isinstance(made, PollingRelay) and once:
                await made.drain()
            elif isinstance(made, ReplicationRelay) and create_slot:
                await made.create()
                await made.run()
            else:
                await made.run()
            click.echo(f"published: {made.published}")

        with tracing.on(settings, "relay"):
            asyncio.run(served(relayed))


@outbox.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def stats(as_json: bool) -> None:
    """How many events wait, since when, and why.

    \b
    millstream outbox stats --json
    """
    from sources.outbox import OutboxStore
    from sources.outbox.slot import slot_stats

    settings = get_settings()

    async def ask(connection: Connection) -> tuple[dict[str, Any], list[Any]]:
        store = OutboxStore(settings)
        found = await store.stats(connection) | {"slot": await slot_stats(connection, settings.outbox_slot)}
        return found, await store.parked(connection)

    found, parked = _connected(settings, ask)
    if as_json:
        click.echo(json.dumps(found | {"parked_events": [dict(row) for row in parked]}, default=_json))
        return
    for name in ("pending", "leased", "retrying", "parked", "held", "unrouted", "max_attempts"):
        click.echo(f"{name:<22}{found[name]:>12,}")
    click.echo(f"{'oldest':<22}{found['oldest_seconds']:>12,.1f} s")
    click.echo(f"{'published per second':<22}{found['published_per_second']:>12,.1f}")
    if slot := found["slot"]:
        click.echo(f"{'slot':<22}{slot['slot_name']}, {'active' if slot['active'] else 'NOT ACTIVE'}, "
                   f"{slot['lag_bytes']:,} bytes behind, WAL {slot['wal_status']}")  # fmt: skip
    for row in parked:
        click.echo(f"parked: {row['event_id']} version {row['version']} of {row['aggregate_type']} "
                   f"{row['aggregate_id']} after {row['delivery_attempts']} attempts: {row['last_error']}")  # fmt: skip
    if found["unrouted"]:
        click.echo("unrouted: aggregate types that MILLSTREAM_OUTBOX_TOPICS does not name; no relay takes them")


@outbox.command()
@click.option("--event", "events", type=click.UUID, multiple=True, metavar="ID", help="This event; may be repeated.")
@click.option("--parked", is_flag=True, help="All events that were given up.")
@click.option("--since", metavar="TIME", help="All events that occurred from then on, published ones too.")
def requeue(events: tuple[UUID, ...], parked: bool, since: str | None) -> None:
    """Publish events again, under their own ids: readers that have them take no notice.

    \b
    millstream outbox requeue --parked
    millstream outbox requeue --since 2026-11-23T08:30:00Z
    """
    from sources.outbox import OutboxStore

    at = None if since is None else time(since)
    if not (events or parked or at):
        raise click.UsageError("give --event ID, --parked or --since TIME")
    settings = get_settings()
    done, missing = _connected(
        settings, lambda c: OutboxStore(settings).requeue(c, list(events), parked=parked, since=at)
    )
    click.echo(f"requeued: {done}")
    if missing:
        raise ConfigError(f"not in the outbox (never written, or pruned): {', '.join(missing)}")


@outbox.command()
@click.option("--older-than", required=True, metavar="AGE", help="Published longer ago than this: 90s, 15m, 12h, 7d.")
@click.option("--dry-run", is_flag=True, help="Only say how many.")
def prune(older_than: str, dry_run: bool) -> None:
    """Delete published events. What is not published stays, however old.

    \b
    millstream outbox prune --older-than 7d
    """
    from sources.outbox import OutboxStore

    age, settings = duration(older_than), get_settings()
    store = OutboxStore(settings)
    done = _connected(settings, lambda c: store.prunable(c, age) if dry_run else store.prune(c, age))
    click.echo(f"{'would prune' if dry_run else 'pruned'}: {done}")


@outbox.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write; default: stdout.")
@click.option("--since", metavar="TIME", help="Also published ones that occurred from then on.")
def export(out: Path | None, since: str | None) -> None:
    """Unpublished events as JSON lines, payload in Base64: before the schema is rolled back, or to look at them.

    \b
    millstream outbox export --out unpublished.jsonl
    """
    from sources.outbox import OutboxStore

    at, settings = None if since is None else time(since), get_settings()

    async def write(connection: Connection) -> int:
        count, file = 0, sys.stdout if out is None else _new_file(out)
        try:
            async for row in OutboxStore(settings).export(connection, at):
                file.write(json.dumps(row, default=_json) + "\n")
                count += 1
        finally:
            if out is not None:
                file.close()
        return count

    try:
        count = _connected(settings, write)
    except OSError as e:
        raise ConfigError(f"cannot write {out}: {e}") from e
    click.echo(f"exported: {count}", err=True)


def _new_file(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as exc:
        raise click.UsageError(f"--out {path} cannot be written: {exc.strerror}") from exc


def _connected(settings: Settings, ask: Callable[[Connection], Awaitable[T]]) -> T:
    from millstream.postgres import connect, naming, postgres_url
    from schemas.postgres import require_migrated

    url = postgres_url(settings)

    async def run() -> T:
        with naming("ask the outbox", url):
            async with connect(url) as connection:
                await require_migrated(connection)
                return await ask(connection)

    return asyncio.run(run())


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)
