"""One broker with our proxy before it: workers see the proxy only, the test and its checker go past it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from millstream.broker import EmbeddedBroker
from tests.support.cluster import free_ports
from tests.support.proxy import KafkaProxy, listeners


class Site(NamedTuple):
    """Broker and proxy."""

    broker: EmbeddedBroker
    proxy: KafkaProxy

    @property
    def direct(self) -> str:
        """Bootstrap servers past the proxy."""
        return self.broker.bootstrap_servers


@contextmanager
def site(directory: Path, transaction_version: int = 2) -> Iterator[Site]:
    """`transaction_version`: 2 is Kafka's default, 0 is how brokers were before KIP-890."""
    port, controller, behind, advertised = free_ports(4)
    broker = EmbeddedBroker(
        directory,
        port,
        heap_mib=256,
        properties=listeners(port, controller, behind, advertised),
        features={"transaction.version": transaction_version},
    )
    with KafkaProxy(("127.0.0.1", behind), advertised) as proxy, broker:
        yield Site(broker, proxy)
