"""The replication slot and the publication: what must be there, made on request, and how much WAL it keeps."""

from __future__ import annotations

from typing import Any

from millstream.errors import ConfigError
from millstream.logs import get_logger
from millstream.postgres import Connection, load

SQL = load("sources.outbox", "slot.sql")

log = get_logger(__name__)


async def check_slot(connection: Connection, slot: str, publication: str) -> None:
    """Raise ConfigError, with the SQL to run, unless slot and publication can be read from."""
    row = await connection.fetchrow(SQL["look"], slot, publication)
    assert row is not None
    if row["wal_level"] != "logical":
        raise ConfigError(
            f"wal_level is {row['wal_level']}, must be logical: ALTER SYSTEM SET wal_level = logical; then restart "
            "Postgres. Or use `millstream outbox relay --via polling`"
        )
    if not row["may_replicate"]:
        raise ConfigError("this user may not replicate: ALTER ROLE … REPLICATION; as a superuser")
    if not row["publishes"] or not row["has_table"]:
        raise ConfigError(
            f"there is no publication {publication!r} of inserts into catalog.outbox_events: "
            f"{_publication(publication)}; or start the relay with --create-slot"
        )
    if row["plugin"] is None:
        raise ConfigError(
            f"there is no replication slot {slot!r}: SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput'); "
            "or start the relay with --create-slot"
        )
    if row["plugin"] != "pgoutput" or row["slot_database"] != row["database"]:
        raise ConfigError(
            f"replication slot {slot!r} is one of plugin {row['plugin']} in database {row['slot_database']!r}, not of "
            f"pgoutput in {row['database']!r}: set MILLSTREAM_OUTBOX_SLOT to a name of its own"
        )
    if row["wal_status"] == "lost":
        raise ConfigError(
            f"replication slot {slot!r} is lost: it was behind by more than max_slot_wal_keep_size "
            f"({row['wal_keep']}), and the server has removed its WAL. Nothing is lost of the events: SELECT "
            f"pg_drop_replication_slot('{slot}'); then start the relay with --create-slot, it sends the rows that are "
            "left in the table too"
        )


async def warn_unbounded(connection: Connection, slot: str) -> None:
    """Say so if nothing keeps a slot that nobody reads from filling the disk."""
    if await connection.fetchval("SELECT current_setting('max_slot_wal_keep_size')") == "-1":
        log.warning(
            "outbox_wal_unbounded",
            slot=slot,
            description="max_slot_wal_keep_size is -1: while no relay reads, the server keeps all WAL until its disk "
            "is full. Set a bound that you can afford",
        )


async def create_slot(connection: Connection, slot: str, publication: str) -> bool:
    """Make what is missing of both; whether the slot is new. Raises ConfigError."""
    row = await connection.fetchrow(SQL["look"], slot, publication)
    assert row is not None
    if not (row["publishes"] and row["has_table"]) and row["wal_level"] == "logical":
        await connection.execute(_publication(publication))
    created = row["plugin"] is None and row["wal_level"] == "logical"
    if created:
        await connection.execute(SQL["create_slot"], slot)
        log.info("outbox_slot_created", slot=slot, publication=publication)
    await check_slot(connection, slot, publication)
    return created


async def slot_stats(connection: Connection, slot: str) -> dict[str, Any] | None:
    """What the server says of the slot; None if there is none."""
    row = await connection.fetchrow(SQL["stats"], slot)
    return None if row is None else dict(row)


def _publication(name: str) -> str:
    return f"CREATE PUBLICATION {name} FOR TABLE catalog.outbox_events WITH (publish = 'insert')"
