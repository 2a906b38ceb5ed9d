"""The embedded Kafka broker, and `broker_from(settings)`, which prefers a broker that is configured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from millstream.broker.embedded import EmbeddedBroker
from millstream.broker.probe import unanswered
from millstream.cluster import client_config
from millstream.errors import BrokerError
from millstream.settings import Settings

__all__ = ["EmbeddedBroker", "broker_from", "check_broker", "unanswered"]

CHECK_TIMEOUT = 10.0
"""Seconds a configured broker has to answer at the start."""


async def check_broker(settings: Settings, timeout: float = CHECK_TIMEOUT) -> None:  # noqa: ASYNC109
    """Raise BrokerError, which names the setting to look at, unless the configured Kafka answers in `timeout` seconds.

    Raises ConfigError for certificates that cannot be used.
    """
    why = await asyncio.to_thread(lambda: unanswered(client_config(settings), timeout))
    if why is not None:
        error = BrokerError(why)
        if not settings.bootstrap_servers:
            error.add_note(
                "The setting is not made, this is its default; in a checkout `make kafka` starts a broker there"
            )
        raise error


@asynccontextmanager
async def broker_from(settings: Settings) -> AsyncIterator[str]:
    """Bootstrap servers to use: those configured, once they answer; else an embedded broker's, stopped at the end."""
    if settings.bootstrap_servers:
        try:
            await check_broker(settings)
        except BrokerError as exc:
            exc.add_note("Without that setting, one-shot commands start a broker of their own")
            raise
        yield settings.bootstrap_servers
    else:
        async with EmbeddedBroker(settings.data_dir / "kafka") as broker:
            yield broker.bootstrap_servers
