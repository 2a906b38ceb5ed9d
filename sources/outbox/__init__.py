"""Transactional outbox: events written with the business row they tell of, and relays that bring them to Kafka.

`transaction(connection)` is the writer's side, `Videos` an example of it. `PollingRelay` and `ReplicationRelay` are two
ways to the same topic: by claiming rows of the table, or by reading its inserts from a replication slot.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sources.outbox.relay import PollingRelay
    from sources.outbox.replication import ReplicationRelay
    from sources.outbox.store import OutboxStore
    from sources.outbox.videos import Videos
    from sources.outbox.writer import OutboxTransaction, Token, transaction

_WHERE = {
    "OutboxStore": "store",
    "OutboxTransaction": "writer",
    "PollingRelay": "relay",
    "ReplicationRelay": "replication",
    "Token": "writer",
    "Videos": "videos",
    "transaction": "writer",
}

__all__ = [
    "OutboxStore",
    "OutboxTransaction",
    "PollingRelay",
    "ReplicationRelay",
    "Token",
    "Videos",
    "transaction",
]


def __getattr__(name: str) -> Any:
    """Loaded when asked for: a writer needs no Kafka client."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
