"""Workers on hosts of their own (network namespaces), and the links between them and the broker cut or slow."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from millstream.broker import EmbeddedBroker
from tests.chaos.fleet import SESSION, TRANSACTION
from tests.chaos.stream import StreamScenario
from tests.conftest import Unique
from tests.faults.load import finish, go_on, progress
from tests.support.cluster import free_ports
from tests.support.namespaces import Host, own_network

pytestmark = [pytest.mark.chaos, pytest.mark.faults, pytest.mark.timeout(1200)]

LONG = SESSION + TRANSACTION
"""Seconds after which group and transaction coordinator have given up whoever is not heard of."""


@contextmanager
def _hosts(directory: Path, home: Path, name: str, seed: int) -> Iterator[tuple[StreamScenario, dict[str, Host]]]:
    """Workers a and b each on a host of their own; the broker, the test and its checker at the hub."""
    with own_network() as network:
        port, controller, reached = free_ports(3)
        hub = f"{network.HUB}:{reached}"
        properties = {
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},HOSTS://{hub}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},HOSTS://{hub}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,HOSTS:PLAINTEXT",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        }
        with (
            EmbeddedBroker(directory, port, heap_mib=256, properties=properties) as broker,
            StreamScenario(broker.bootstrap_servers, home, name, seed, BOOTSTRAP_SERVERS=hub) as scenario,
        ):
            hosts = {slot: network.host() for slot in "ab"}
            scenario.fleet.prefixes |= {slot: host.prefix for slot, host in hosts.items()}
            yield scenario, hosts


def test_a_stream_is_exact_while_links_are_cut_both_ways_and_one_way(
    tmp_path: Path, home: Path, unique: Unique, seed: int
) -> None:  # T7
    """Each kind of cut shorter and longer than the timeouts: of one host, then of both at once."""
    cuts = [{"up": True, "down": True}, {"up": True, "down": False}, {"up": False, "down": True}]
    with _hosts(tmp_path / "kafka", home, unique("hosts"), seed) as (scenario, hosts):
        fleet, counts = scenario.fleet, Counter[str]()
        scenario.feeder.start()
        progress(scenario)
        plan = list(itertools.product(cuts, ("a", "b", "ab"), (False, True)))
        fleet.random.shuffle(plan)
        for directions, slots, long in plan:
            for slot in slots:
                hosts[slot].cut(**directions)
            go_on(scenario, fleet.random.uniform(LONG + 2, LONG + 8) if long else fleet.random.uniform(0.5, 3))
            if long and slots != "ab":
                progress(scenario)  # the other one took everything over
            for slot in slots:
                hosts[slot].mend()
            counts["cuts " + " and ".join(d for d, on in directions.items() if on)] += 1
            progress(scenario)
        finish(scenario, "links of hosts cut", counts)


def test_a_stream_is_exact_over_slow_links_that_lose_packets(
    tmp_path: Path, home: Path, unique: Unique, seed: int
) -> None:
    """Down to 300 kbit/s with queues of a few packets, what does not fit being lost."""
    with _hosts(tmp_path / "kafka", home, unique("slow"), seed) as (scenario, hosts):
        fleet, counts = scenario.fleet, Counter[str]()
        scenario.feeder.start()
        progress(scenario)
        for rate, limit in (("2mbit", 60_000), ("1mbit", 12_000), ("300kbit", 6_000)):
            for host in hosts.values():
                host.slow(rate, limit)
            go_on(scenario, fleet.random.uniform(15, 25))
            progress(scenario)
            counts[rate] += 1
        for host in hosts.values():
            host.mend()
        finish(scenario, "links of hosts slow and lossy", counts)
