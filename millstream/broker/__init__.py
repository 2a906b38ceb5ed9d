"""The embedded Kafka broker, and `broker_from(settings)`, which prefers a broker that is configured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from millstream.broker.embedded import EmbeddedBroker, answers
from millstream.errors import BrokerError
from millstream.settings import Settings

__all__ = ["EmbeddedBroker", "answers", "broker_from", "check_broker"]

CHECK_TIMEOUT = 10.0
"""Seconds a configured broker has to answer at the start."""


async def check_broker(bootstrap_servers: str, timeout: float = CHECK_TIMEOUT) -> None:  # noqa: ASYNC109
    """Raise BrokerError unless Kafka answers there within `timeout` seconds."""
    why = await asyncio.to_thread(answers, bootstrap_servers, timeout)
    if why is not None:
        raise BrokerError(
            f"no Kafka broker answers at MILLSTREAM_BOOTSTRAP_SERVERS = {bootstrap_servers!r} ({why}). "
            "Start it, correct the setting, or unset it: one-shot commands then start a broker of their own"
        )


@asynccontextmanager
async def broker_from(settings: Settings) -> AsyncIterator[str]:
    """Bootstrap servers to use: those configured, once they answer; else an embedded broker's, stopped at the end."""
    if settings.bootstrap_servers:
        await check_broker(settings.bootstrap_servers)
        yield settings.bootstrap_servers
    else:
        async with EmbeddedBroker(settings.data_dir / "kafka") as broker:
            yield broker.bootstrap_servers
