"""Brings about what a MillstreamWorker asks for, and tells its status. Every step may be done again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from millstream.operator.cluster import Cluster
from millstream.operator.objects import KIND, must_replace, objects, selector
from millstream.operator.spec import InvalidSpecError, WorkerSpec, parse
from millstream.operator.status import refused, status_of


class NotYetError(Exception):
    """Something has to end first. Try again in some seconds."""


async def reconcile(cluster: Cluster, worker: Mapping[str, Any]) -> None:
    """Make what is missing, change what differs. Raises InvalidSpecError (told in the status too) and NotYetError."""
    name = worker["metadata"]["name"]
    try:
        spec = parse(worker)
        desired = objects(spec)
        for one in desired:
            await _ours(cluster, spec, one)
        await _replace(cluster, spec, desired[-1])
        for one in desired:
            await cluster.apply(one)
    except InvalidSpecError as exc:
        await cluster.set_status(name, refused(worker, str(exc), datetime.now(UTC)))
        raise
    await tell(cluster, worker)


async def tell(cluster: Cluster, worker: Mapping[str, Any]) -> None:
    """Write the status, if it is another one than before."""
    name = worker["metadata"]["name"]
    found = await cluster.get("StatefulSet", name)
    pods = await cluster.list("Pod", selector(name))
    status = status_of(worker, found, sorted(pods, key=lambda pod: pod["metadata"]["name"]), datetime.now(UTC))
    if status != worker.get("status"):
        await cluster.set_status(name, status)


async def refresh(cluster: Cluster, name: str, *, only_tell: bool = False) -> None:
    """After something happened to a StatefulSet: put it back if somebody changed or deleted it. To a pod: tell it."""
    worker = await cluster.get(KIND, name)
    if worker is None or worker["metadata"].get("deletionTimestamp"):
        return
    status = worker.get("status") or {}
    if status.get("phase") == "Invalid" and status.get("observedGeneration") == worker["metadata"]["generation"]:
        return
    if only_tell:
        await tell(cluster, worker)
    else:
        await reconcile(cluster, worker)


async def _ours(cluster: Cluster, spec: WorkerSpec, desired: Mapping[str, Any]) -> None:
    """Refuse to take over what somebody else made under the same name."""
    kind, name = desired["kind"], desired["metadata"]["name"]
    found = await cluster.get(kind, name)
    if found is None:
        return
    owners = [owner["uid"] for owner in found["metadata"].get("ownerReferences") or ()]
    if spec.uid not in owners:
        raise InvalidSpecError(
            f"{kind} {name} exists in namespace {spec.namespace} and is not of this {KIND}: delete it, or choose "
            "another metadata.name"
        )
    if found["metadata"].get("deletionTimestamp"):
        raise NotYetError(f"{kind} {name} is being deleted")


async def _replace(cluster: Cluster, spec: WorkerSpec, desired: Mapping[str, Any]) -> None:
    """Where fields differ that a StatefulSet cannot change: grow the volumes, delete it, and leave its pods running."""
    existing = await cluster.get("StatefulSet", spec.name)
    if existing is None or not (fields := must_replace(existing, desired)):
        return
    if spec.storage:
        for claim in await cluster.list("PersistentVolumeClaim", selector(spec.name)):
            await cluster.grow(claim["metadata"]["name"], spec.storage.size)
    await cluster.orphan("StatefulSet", spec.name)
    raise NotYetError(f"StatefulSet {spec.name} is made anew, as {', '.join(fields)} cannot be changed; its pods stay")
