"""Topics made and deleted on a real broker, whose metadata lags behind its controller."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from confluent_kafka.admin import NewTopic

from millstream.cluster import Cluster, TopicInfo
from tests.conftest import Unique


class Lagging(Cluster):
    """Shows topics at its first look as they were, as a broker does that has not heard of a deletion yet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stale: dict[str, TopicInfo] = {}

    def topics(self, names: Iterable[str]) -> dict[str, TopicInfo]:
        if self.stale:
            stale, self.stale = self.stale, {}
            return {name: stale[name] for name in names if name in stale}
        return super().topics(names)


@pytest.fixture
def cluster(kafka: str) -> Lagging:
    return Lagging({"bootstrap.servers": kafka}, 10.0)


def test_a_topic_is_made_that_was_deleted_a_moment_ago(cluster: Lagging, unique: Unique) -> None:
    kept, gone = unique("kept"), unique("gone")
    cluster.create([NewTopic(kept, 1, 1), NewTopic(gone, 2, 1)])
    before = cluster.topics([kept, gone])
    cluster.delete([gone])
    cluster.stale = {gone: before[gone]}
    cluster.create([NewTopic(gone, 2, 1)])
    cluster.stale = before
    cluster.delete([gone])  # whose id is not the one that it still shows
    assert cluster.topics([kept, gone]) == {kept: before[kept]}
    cluster.delete([kept])


def test_topics_that_were_deleted_are_no_longer_shown(cluster: Lagging, unique: Unique) -> None:
    names = [unique("t") for _ in range(5)]
    cluster.create([NewTopic(name, 1, 1) for name in names])
    cluster.delete([*names, unique("never")])
    assert cluster.topics(names) == {}
    cluster.create([NewTopic(name, 3, 1) for name in names])
    assert {info.partitions for info in cluster.topics(names).values()} == {3}
    cluster.delete(names)


def test_a_topic_made_anew_meanwhile_counts_as_deleted(
    cluster: Lagging, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = unique("t")
    cluster.create([NewTopic(name, 1, 1)])
    first, delete = cluster.topics([name]), cluster.admin.delete_topics

    def someone_else_makes_it(names: list[str], **options: Any) -> Any:
        for future in delete(names, **options).values():
            future.result()
        cluster.create([NewTopic(name, 1, 1)])
        return {}

    with monkeypatch.context() as patched:
        patched.setattr(cluster.admin, "delete_topics", someone_else_makes_it)
        cluster.delete([name])
    assert cluster.topics([name]).keys() == {name}
    assert cluster.topics([name]) != first
    cluster.delete([name])
