"""A cluster of three that loses its brokers one at a time, then two of three (replication 3, 2 in sync)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.fleet import PATIENCE
from tests.chaos.stream import StreamScenario
from tests.conftest import Unique
from tests.faults.load import finish, go_on, keep, progress
from tests.support.cluster import EmbeddedCluster
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


def _scenario(cluster: EmbeddedCluster, home: Path, name: str, seed: int) -> StreamScenario:
    settings = {"TOPIC_REPLICATION_FACTOR": 3, "REQUEST_TIMEOUT": 20}
    return StreamScenario(cluster.bootstrap_servers, home, name, seed, rate=100, **settings)


def _coordinators(cluster: EmbeddedCluster, scenario: StreamScenario, gone: set[int]) -> tuple[int, int]:
    """Of the group, and of worker a's transactions, once neither is one of those that are gone."""

    def look() -> tuple[int, int] | None:
        keep(scenario)
        found = cluster.coordinators(scenario.name, f"{scenario.name}-a")
        return None if {-1, *gone} & set(found) else found

    return wait_until(look, PATIENCE, f"coordinators other than {gone}", every=0.3) or (-1, -1)


def _lose_one_at_a_time(cluster: EmbeddedCluster, home: Path, name: str, seed: int, rounds: int) -> None:
    """Whoever coordinates worker a's transactions dies, then whoever coordinates the group, in turn."""
    moved: Counter[str] = Counter()
    with _scenario(cluster, home, name, seed) as scenario:
        scenario.feeder.start()
        progress(scenario)
        for number in range(rounds):
            before = _coordinators(cluster, scenario, set())
            victim = before[(number + 1) % 2]
            cluster.kill(victim)

            after = _coordinators(cluster, scenario, {victim})
            moved["group coordinator"] += before[0] != after[0]
            moved["transaction coordinator"] += before[1] != after[1]
            progress(scenario)  # with two brokers
            cluster.start([victim])
            cluster.wait_in_sync(PATIENCE)
            progress(scenario)
        assert moved["group coordinator"]
        assert moved["transaction coordinator"]
        finish(scenario, "cluster of three, one lost at a time", {"kills of brokers": rounds, **moved})


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(tmp_path / "cluster") as made:
        yield made


def test_a_stream_is_exact_while_its_coordinators_die_and_move(
    cluster: EmbeddedCluster, home: Path, unique: Unique, seed: int
) -> None:
    _lose_one_at_a_time(cluster, home, unique("cluster"), seed, 2)


@pytest.mark.faults
def test_a_stream_is_exact_while_brokers_of_three_die_five_times(
    cluster: EmbeddedCluster, home: Path, unique: Unique, seed: int
) -> None:
    _lose_one_at_a_time(cluster, home, unique("cluster"), seed, 5)


@pytest.mark.faults
def test_two_of_three_brokers_down_stop_a_stream_and_lose_nothing(
    cluster: EmbeddedCluster, home: Path, unique: Unique, seed: int
) -> None:
    """Too few replicas in sync: nothing can be committed. Workers wait, or end with a documented code."""
    rounds = 2
    with _scenario(cluster, home, unique("two"), seed) as scenario:
        scenario.feeder.start()
        progress(scenario)
        for _ in range(rounds):
            nodes = scenario.fleet.random.sample(sorted(cluster.brokers), 2)
            cluster.kill(*nodes)
            go_on(scenario, scenario.fleet.random.uniform(5, 25))
            cluster.start(nodes)
            cluster.wait_in_sync(PATIENCE)
            progress(scenario)
        finish(scenario, "two of three brokers down", {"times": rounds})
