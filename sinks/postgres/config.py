"""Where the Postgres sinks write."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PostgresConfig:
    """A server and how many connections to it."""

    url: str = field(repr=False)
    pool_size: int = 8
    group: str = "millstream"
    """Consumer group of the workers: two applications may read the same topic into the same database."""
