"""`millstream batches`: what runs, what is done, what is stuck; and how to end it."""

from __future__ import annotations

import json
import time

import click
import confluent_kafka as ck
from rich.console import Console
from rich.table import Table

from millstream.cluster import client_config
from millstream.errors import BrokerError, ConfigError
from millstream.settings import Settings, get_settings
from schemas.batch import Batch, parse_rfc3339
from schemas.control import AbortBatch, encode_fact
from schemas.names import batches_topic
from streams.cli.connected import check_kafka
from streams.cli.errors import Group
from streams.cli.states import States
from streams.ledger import DONE, EXPECTED, PUBLISHED, RUNNING, BatchState

ABORT_WAIT = 15.0
"""Seconds that `abort` waits for a worker to act."""


class _ListGroup(Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`batches --json` is `batches list --json`."""
        listed = args and args[0].startswith("-") and args[0] not in ctx.help_option_names
        return super().parse_args(ctx, ["list", *args] if listed else args)


@click.group(cls=_ListGroup, invoke_without_command=True)
@click.pass_context
def batches(ctx: click.Context) -> None:
    """Batches: running, done, stuck, and which instances are missing.

    \b
    millstream batches
    millstream batches list --cluster prod --json
    millstream batches abort prod 2026-11-23T08:30:00Z --reason "host is gone"
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(show)


@batches.command("list")
@click.option("--cluster", help="Only batches of this cluster.")
@click.option(
    "--stuck-after",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Seconds without progress after which a running batch is shown as stuck.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per batch and line.")
def show(cluster: str | None = None, stuck_after: float = 300.0, as_json: bool = False) -> None:
    """List batches, the oldest first.

    \b
    millstream batches list --stuck-after 60
    """
    with States(_connected()) as states:
        found = {k: b for k, b in states.load().batches().items() if cluster in (None, k.partition("/")[2])}
        rows = [_row(states, key, batch, stuck_after) for key, batch in found.items()]
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
        return
    if not rows:
        click.echo("no batches" + (f" of cluster {cluster!r}" if cluster else "") + " yet")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("cluster", "batch", "state", "instances", "records", "last progress", "missing, or why"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(
            str(row["cluster"]),
            str(row["batch"]),
            str(row["state"]),
            str(row["instances"]),
            f"{row['records']:,}",
            f"{row['seconds_since_progress']} s ago",
            str(row["reason"] or ", ".join(map(str, row["missing"]))),  # type: ignore[call-overload]
        )
    Console(width=None if Console().is_terminal else 200).print(table)


def _row(states: States, key: str, batch: BatchState, stuck_after: float) -> dict[str, object]:
    time_text, _, cluster = key.partition("/")
    instances = {i: s.state if (s := states.instance(key, i)) else EXPECTED for i in batch.instances}
    since = max(0, round(time.time() - batch.updated_ms / 1000))
    return {
        "cluster": cluster,
        "batch": time_text,
        "state": "stuck" if batch.state == RUNNING and since >= stuck_after else batch.state,
        "instances": f"{batch.done}/{len(batch.instances)}",
        "records": batch.rows,
        "dead_letters": batch.dead_letters,
        "seconds_since_progress": since,
        "missing": [] if batch.state == PUBLISHED else [i for i, s in instances.items() if s != DONE],
        "reason": batch.reason,
    }


@batches.command()
@click.argument("cluster")
@click.argument("batch")
@click.option("--reason", default="aborted by hand", show_default=True, help="For the list and the log.")
def abort(cluster: str, batch: str, reason: str) -> None:
    """End the batch BATCH (its RFC 3339 time) of CLUSTER. It is never published, whatever still arrives.

    \b
    millstream batches abort prod 2026-11-23T08:30:00Z --reason "host is gone"
    """
    try:
        which = Batch(cluster, parse_rfc3339(batch))
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="BATCH") from exc
    settings = _connected()
    with States(settings) as states:
        state = states.load().batch(which.key)
        if state is None:
            raise ConfigError(
                f"there is no batch {which.rfc3339} of cluster {cluster!r}; `millstream batches` lists them"
            )
        if state.state == PUBLISHED:
            raise ConfigError(f"batch {which.rfc3339} of cluster {cluster!r} is published already")
        _send(settings, which, AbortBatch(reason=reason))
        deadline = time.monotonic() + ABORT_WAIT
        while (now := states.batch(which.key)) is not None and now.state == state.state != "aborted":
            states.update(0.2)
            if time.monotonic() > deadline:
                click.echo("the abort is on record; it takes effect when a worker runs")
                return
        click.echo(f"batch {which.rfc3339} of cluster {cluster!r} is {now.state if now else 'gone'}")


def _send(settings: Settings, batch: Batch, fact: AbortBatch) -> None:
    failed: list[str] = []
    producer = ck.Producer({**client_config(settings), "enable.idempotence": True, "partitioner": "murmur2_random"})
    producer.produce(
        batches_topic(settings.namespace),
        encode_fact(fact),
        batch.key.encode(),
        on_delivery=lambda error, _: failed.append(error.str()) if error is not None else None,
    )
    if producer.flush(settings.request_timeout) or failed:
        raise BrokerError(f"the abort could not be sent: {failed[0] if failed else 'no answer from the broker'}")


def _connected() -> Settings:
    settings = get_settings()
    if not settings.bootstrap_servers:
        raise ConfigError("set MILLSTREAM_BOOTSTRAP_SERVERS=host:port to the Kafka of the workers")
    check_kafka(settings)
    return settings
