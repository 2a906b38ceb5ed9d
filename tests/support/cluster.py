"""Three brokers that replicate: min.insync.replicas 2, so that one at a time may die."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from millstream.broker import EmbeddedBroker
from millstream.broker.embedded import new_cluster_id
from millstream.child import free_port
from tests.support.waiting import wait_until

HEAP_MIB = 256


def free_ports(count: int) -> list[int]:
    """As many different ones, see `free_port`."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return list(found)


class EmbeddedCluster:
    """Brokers 1 to `brokers`, each controller and broker. Topics have as many replicas, of which all but one must be
    in sync."""

    def __init__(self, directory: Path, brokers: int = 3, properties: Mapping[str, str] | None = None) -> None:
        ports = free_ports(2 * brokers)
        listening, controllers = ports[:brokers], ports[brokers:]
        voters = ",".join(f"{n}@127.0.0.1:{port}" for n, port in enumerate(controllers, 1))
        cluster, minimum = new_cluster_id(), str(brokers - 1)
        self.brokers: dict[int, EmbeddedBroker] = {}
        for node, (port, controller) in enumerate(zip(listening, controllers, strict=True), 1):
            own = {
                "node.id": str(node),
                "controller.quorum.voters": voters,
                "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
                "default.replication.factor": str(brokers),
                "min.insync.replicas": minimum,
                "offsets.topic.replication.factor": str(brokers),
                "transaction.state.log.replication.factor": str(brokers),
                "transaction.state.log.min.isr": minimum,
                "controller.quorum.election.timeout.ms": "500",
                "controller.quorum.fetch.timeout.ms": "1000",
                "replica.lag.time.max.ms": "3000",
            }
            self.brokers[node] = EmbeddedBroker(
                directory / str(node),
                port,
                heap_mib=HEAP_MIB,
                properties=own | dict(properties or {}),
                cluster_id=cluster,
            )

    @property
    def bootstrap_servers(self) -> str:
        """All brokers, running or not."""
        return ",".join(broker.bootstrap_servers for broker in self.brokers.values())

    def start(self, nodes: Iterable[int] = ()) -> None:
        """Start those that do not run (or those of `nodes`), side by side: one alone finds no controller."""
        self._each(nodes, EmbeddedBroker.start)

    def kill(self, *nodes: int) -> None:
        """kill -9."""
        self._each(nodes, EmbeddedBroker.kill)

    def stop(self) -> None:
        """All of them, by kill -9: an orderly stop of the last ones would wait for a controller in vain."""
        self.kill()

    def wait_in_sync(self, timeout: float) -> None:
        """Until every replica of every partition, Kafka's own topics included, is in sync."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 2})

        def behind() -> list[str]:
            try:
                topics = admin.list_topics(timeout=10).topics.values()
            except KafkaException:
                return ["nobody answers"]
            return [f"{t.topic}-{p.id}" for t in topics for p in t.partitions.values() if len(p.isrs) < len(p.replicas)]

        wait_until(lambda: not behind(), timeout, "all replicas in sync", every=0.3)

    def coordinators(self, group: str, transactional_id: str) -> tuple[int, int]:
        """Which broker coordinates the group, and which one the transactions of the id: leaders of their partitions.

        -1: nobody does at the moment, or nobody answers.
        """
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 2})
        try:
            topics = admin.list_topics(timeout=10).topics
        except KafkaException:
            return -1, -1
        found = []
        for topic, key in (("__consumer_offsets", group), ("__transaction_state", transactional_id)):
            partitions = topics[topic].partitions
            found.append(partitions[abs(_java_hash(key)) % len(partitions)].leader)
        return found[0], found[1]

    def _each(self, nodes: Iterable[int], call: Callable[[EmbeddedBroker], None]) -> None:
        chosen = [self.brokers[node] for node in nodes or self.brokers]
        with ThreadPoolExecutor(len(chosen)) as threads:
            for done in [threads.submit(call, broker) for broker in chosen]:
                done.result()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def _java_hash(text: str) -> int:
    """String.hashCode, which Kafka partitions its own topics by (groups and ids, absolute value)."""
    value = 0
    for unit in text:
        value = (31 * value + ord(unit)) & 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value
