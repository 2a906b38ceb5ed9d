"""Partition assignor: whole tasks, spread evenly within each family, kept where they are when that is fair.

Faust's own puts partition 0 of all topics on one worker (T11). Eager protocol, as Faust's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from faust.assignor.client_assignment import ClientAssignment
from faust.assignor.partition_assignor import PartitionAssignor

from millstream.cluster import TP
from streams.engine.topology import TaskKey, Topology


def spread(
    tasks: Mapping[TaskKey, set[TP]],
    eligible: Mapping[TaskKey, set[str]],
    owners: Mapping[TP, str],
    members: Iterable[str],
) -> dict[str, set[TP]]:
    """Assign tasks to members.

    `eligible`: members that subscribe to a task's topics; `owners`: who held a partition before.
    """
    result: dict[str, set[TP]] = {m: set() for m in members}
    families: dict[str, list[TaskKey]] = defaultdict(list)
    for key in sorted(tasks):
        families[key.family].append(key)
    for keys in families.values():
        held: dict[str, int] = dict.fromkeys(result, 0)
        everyone = set().union(*(eligible[k] for k in keys)) or set(result)
        floor, extra = divmod(len(keys), len(everyone))
        most = math.ceil(len(keys) / len(everyone))
        left: list[TaskKey] = []
        for key in keys:
            before = {owners[tp] for tp in tasks[key] if tp in owners}
            owner = next(iter(before)) if len(before) == 1 else ""
            stays = owner in eligible[key] and (held[owner] < floor or (extra > 0 and held[owner] < most))
            if not stays:
                left.append(key)
                continue
            if held[owner] == floor:
                extra -= 1
            held[owner] += 1
            result[owner] |= tasks[key]
        for key in left:
            candidates = eligible[key] or set(result)
            member = min(candidates, key=lambda m: (held[m], len(result[m]), m))
            held[member] += 1
            result[member] |= tasks[key]
    return result


class Assignor(PartitionAssignor):
    """Faust's assignor with another way to spread. Changelogs are not assigned: the engine derives and reads them."""

    @property
    def name(self) -> str:
        """Protocol name in the group."""
        return "millstream"

    def _perform_assignment(self, cluster: Any, member_metadata: Any) -> Any:
        topology: Topology = self.app.topology
        clients = {m: self._get_client_metadata(md) for m, md in member_metadata.items()}
        self._update_member_urls(clients)
        subscribed = {m: set(md.subscription) for m, md in member_metadata.items()}
        tasks: dict[TaskKey, set[TP]] = defaultdict(set)
        for topic in sorted(set().union(*subscribed.values())):
            for partition in cluster.partitions_for_topic(topic) or ():
                tp = TP(topic, partition)
                tasks[topology.task_of(tp) or TaskKey(topic, str(partition))].add(tp)
        eligible = {
            key: {m for m, topics in subscribed.items() if all(tp.topic in topics for tp in tps)}
            for key, tps in tasks.items()
        }
        owners = {TP(*tp): m for m, c in clients.items() for tp in c.assignment.active_tps}
        assigned = spread(
            {k: tps for k, tps in tasks.items() if eligible[k]}, eligible, owners, sorted(member_metadata)
        )
        assignments = {m: ClientAssignment(actives=_by_topic(tps), standbys={}) for m, tps in assigned.items()}
        urls = self._member_urls
        return self._protocol_assignments(
            assignments,
            {urls[m]: _by_topic(self.app.changelogs_of(tps)) for m, tps in assigned.items()},
            {urls[m]: a.actives for m, a in assignments.items()},
            dict.fromkeys((tp.topic for tps in tasks.values() for tp in tps), 0),
        )


def _by_topic(tps: Iterable[TP]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for tp in sorted(tps):
        found[tp.topic].append(tp.partition)
    return dict(found)
