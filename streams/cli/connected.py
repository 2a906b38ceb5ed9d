"""What a command that talks to a Kafka looks at first."""

from __future__ import annotations

import asyncio

from millstream.broker import check_broker
from millstream.settings import Settings


def check_kafka(settings: Settings) -> None:
    """Raise BrokerError, which names the setting and what to do, unless the configured Kafka answers."""
    asyncio.run(check_broker(settings))
