"""A MillstreamWorker as the API server gives it, and an API server in memory for the calls that the operator makes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from millstream.operator.cluster import Cluster
from tests.unit.kube.chart import DEPLOY, load


def worker(**spec: Any) -> dict[str, Any]:
    """deploy/operator/example.yaml with `spec` laid over its spec; None takes a field out."""
    made = load(DEPLOY / "operator" / "example.yaml")
    made["metadata"] |= {"namespace": "default", "uid": "uid-1", "generation": 1}
    made["spec"] = {k: v for k, v in (made["spec"] | spec).items() if v is not None}
    return dict(made)


class FakeCluster(Cluster):
    """Keeps what is applied. What an API server does beyond that is tested against one (tests/kube)."""

    def __init__(self, *objects: Mapping[str, Any]) -> None:
        super().__init__(None, "default")
        self.objects = {(one["kind"], one["metadata"]["name"]): dict(one) for one in objects}
        self.calls: list[tuple[str, ...]] = []
        self.statuses: list[dict[str, Any]] = []

    async def get(self, kind: str, name: str) -> dict[str, Any] | None:
        return copy.deepcopy(self.objects.get((kind, name)))

    async def list(self, kind: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        found = (one for (k, _), one in self.objects.items() if k == kind)
        return [one for one in found if labels.items() <= one["metadata"].get("labels", {}).items()]

    async def apply(self, desired: dict[str, Any]) -> None:
        key = (desired["kind"], desired["metadata"]["name"])
        self.calls.append(("apply", *key))
        self.objects[key] = copy.deepcopy(desired)

    async def orphan(self, kind: str, name: str) -> None:
        self.calls.append(("orphan", kind, name))
        del self.objects[kind, name]

    async def grow(self, claim: str, size: str) -> None:
        self.calls.append(("grow", claim, size))

    async def set_status(self, name: str, status: Mapping[str, Any]) -> None:
        self.statuses.append(dict(status))
        if ("MillstreamWorker", name) in self.objects:
            self.objects["MillstreamWorker", name]["status"] = dict(status)
