"""Which worker gets which partitions."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.cluster import TP
from streams.engine.assignor import spread
from streams.engine.topology import TaskKey

Tasks = dict[TaskKey, set[TP]]


def single_partition_topics(n: int, family: str = "dumps") -> Tasks:
    return {TaskKey(family, f"redis-{i}-0"): {TP(f"redis-{i}", 0)} for i in range(n)}


def owners(assigned: dict[str, set[TP]]) -> dict[TP, str]:
    return {tp: member for member, tps in assigned.items() for tp in tps}


def assign(tasks: Tasks, members: list[str], before: dict[TP, str] | None = None) -> dict[str, set[TP]]:
    return spread(tasks, {k: set(members) for k in tasks}, before or {}, members)


def test_six_instances_on_three_workers_are_two_each() -> None:  # T11
    assigned = assign(single_partition_topics(6), ["a", "b", "c"])
    assert sorted(map(len, assigned.values())) == [2, 2, 2]


def test_six_streams_of_one_partition_each_are_two_each_as_well() -> None:  # T11
    tasks = {TaskKey(f"{i}:s{i}", f"s{i}-0"): {TP(f"s{i}", 0)} for i in range(6)}
    assert sorted(map(len, assign(tasks, ["a", "b", "c"]).values())) == [2, 2, 2]


def test_a_task_with_a_table_stays_whole() -> None:  # hole d
    tasks = {TaskKey("f", str(p)): {TP("orders", p), TP("refunds", p)} for p in range(5)}
    for tps in assign(tasks, ["a", "b"]).values():
        assert Counter(tp.topic for tp in tps) in (
            Counter({"orders": 2, "refunds": 2}),
            Counter({"orders": 3, "refunds": 3}),
        )
        assert {tp.partition for tp in tps if tp.topic == "orders"} == {
            tp.partition for tp in tps if tp.topic == "refunds"
        }


def test_a_third_worker_takes_only_what_is_fair() -> None:
    tasks = single_partition_topics(6)
    before = owners(assign(tasks, ["a", "b"]))
    after = owners(assign(tasks, ["a", "b", "c"], before))
    assert sum(1 for tp in before if before[tp] != after[tp]) == 2


def test_a_worker_that_left_has_its_partitions_spread_and_nothing_else_moves() -> None:
    tasks = single_partition_topics(7)
    before = owners(assign(tasks, ["a", "b", "c"]))
    after = owners(assign(tasks, ["a", "b"], before))
    assert all(after[tp] == member for tp, member in before.items() if member != "c")


def test_a_new_topic_goes_where_there_is_room() -> None:  # T12
    tasks = single_partition_topics(3)
    before = owners(assign(tasks, ["a", "b"]))
    after = owners(assign(single_partition_topics(4), ["a", "b"], before))
    assert all(after[tp] == before[tp] for tp in before)
    assert Counter(after.values()) == {"a": 2, "b": 2}


def test_a_worker_of_another_topology_gets_only_what_it_subscribes_to() -> None:
    tasks = single_partition_topics(4)
    keys = sorted(tasks)
    eligible = {k: {"old", "new"} if i else {"new"} for i, k in enumerate(keys)}
    assigned = spread(tasks, eligible, {}, ["old", "new"])
    assert tasks[keys[0]] <= assigned["new"]
    assert sorted(map(len, assigned.values())) == [2, 2]


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Tasks, list[str], dict[TP, str]]:
    tasks: Tasks = {}
    for f in range(draw(st.integers(1, 3))):
        for t in range(draw(st.integers(0, 7))):
            topics = draw(st.integers(1, 2))
            tasks[TaskKey(f"f{f}", str(t))] = {TP(f"topic-{f}-{i}", t) for i in range(topics)}
    members = [f"m{i}" for i in range(draw(st.integers(1, 5)))]
    former = [*members, "gone"]
    before = {
        tp: draw(st.sampled_from(former)) for k in sorted(tasks) for tp in sorted(tasks[k]) if draw(st.booleans())
    }
    return tasks, members, before


@given(clusters())
def test_every_task_has_one_owner_and_each_family_is_even(cluster: tuple[Tasks, list[str], dict[TP, str]]) -> None:
    tasks, members, before = cluster
    assigned = assign(tasks, members, before)
    assert sorted(tp for tps in assigned.values() for tp in tps) == sorted(tp for tps in tasks.values() for tp in tps)
    held: dict[str, Counter[str]] = {}
    for key, tps in tasks.items():
        (owner,) = [m for m in members if tps <= assigned[m]]
        held.setdefault(key.family, Counter(dict.fromkeys(members, 0)))[owner] += 1
    for family in held.values():
        assert max(family.values()) - min(family.values()) <= 1


@given(clusters())
def test_nothing_moves_when_nothing_changed(cluster: tuple[Tasks, list[str], dict[TP, str]]) -> None:
    tasks, members, before = cluster
    first = assign(tasks, members, before)
    assert assign(tasks, members, owners(first)) == first


@pytest.mark.parametrize("members", [[], ["a"]])
def test_no_tasks_give_no_partitions(members: list[str]) -> None:
    assert assign({}, members) == {m: set() for m in members}
