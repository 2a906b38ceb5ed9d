"""The inbox kept small: events that were applied long ago are forgotten (T19).

What came of them stays in the projection: a field is set only by a greater (version, event id), so an event that comes
again after it was forgotten changes nothing. What is forgotten with it: that it was there (`events_applied` counts it
again) and whether its id or version was used for other content. So keep events for longer than Kafka keeps the topic.
"""

from __future__ import annotations

from millstream.postgres import Connection, connect, load, naming

PRUNE_ROWS = 2_000
"""Rows of one delete: chunks that are applied at the same time must not wait for long."""
_SQL = {name: sql.replace("{schema}", "catalog") for name, sql in load("sinks.postgres", "projection.sql").items()}


async def prune(connection: Connection, older_than: float) -> int:
    """Forget events that were received more than so many seconds ago; how many. Batch by batch."""
    done = 0
    while count := await connection.fetchval(_SQL["prune"], older_than, PRUNE_ROWS):
        done += count
    return done


async def prune_alone(url: str, older_than: float) -> int:
    """The same, unless somebody else is at it. Raises PostgresError, PostgresUnavailableError."""
    with naming("prune the inbox", url):
        async with connect(url, "millstream-inbox") as connection:
            return await prune(connection, older_than) if await connection.fetchval(_SQL["alone"]) else 0
