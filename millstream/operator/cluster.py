"""The API server, as plain dictionaries: the few calls that the operator makes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from lightkube import ApiError, AsyncClient
from lightkube.generic_resource import create_namespaced_resource
from lightkube.types import CascadeType, PatchType

from millstream.operator.objects import GROUP, KIND, MANAGER, PLURAL, VERSION, Object
from millstream.operator.spec import InvalidSpecError

_NOT_FOUND, _FORBIDDEN, _UNPROCESSABLE = 404, 403, 422

Workers: Any = create_namespaced_resource(GROUP, VERSION, KIND, PLURAL)
_KINDS: dict[str, Any] = {
    "StatefulSet": create_namespaced_resource("apps", "v1", "StatefulSet", "statefulsets"),
    "Service": create_namespaced_resource("", "v1", "Service", "services"),
    "PodDisruptionBudget": create_namespaced_resource("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    "Pod": create_namespaced_resource("", "v1", "Pod", "pods"),
    "PersistentVolumeClaim": create_namespaced_resource("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
    KIND: Workers,
}


class Cluster:
    """One namespace. All methods raise lightkube.ApiError, and InvalidSpecError for what is refused for good."""

    def __init__(self, client: Any, namespace: str) -> None:
        self._client, self._namespace = client, namespace

    async def get(self, kind: str, name: str) -> Object | None:
        """An object, or None if there is none."""
        try:
            return dict(await self._client.get(_KINDS[kind], name, namespace=self._namespace))
        except ApiError as exc:
            if exc.status.code == _NOT_FOUND:
                return None
            raise

    async def list(self, kind: str, labels: Mapping[str, str]) -> list[Object]:
        """All objects of a kind with these labels."""
        found = self._client.list(_KINDS[kind], namespace=self._namespace, labels=dict(labels))
        return [dict(one) async for one in found]

    async def apply(self, desired: Object) -> None:
        """Create it, or bring what we say of it up to date (server-side apply); what others say of it stays."""
        try:
            await self._client.apply(_KINDS[desired["kind"]](desired), field_manager=MANAGER, force=True)
        except ApiError as exc:
            if exc.status.code == _UNPROCESSABLE:
                raise InvalidSpecError(f"refused by Kubernetes: {exc}") from exc
            raise

    async def orphan(self, kind: str, name: str) -> None:
        """Delete an object and leave what it owns."""
        await self._client.delete(_KINDS[kind], name, namespace=self._namespace, cascade=CascadeType.ORPHAN)

    async def grow(self, claim: str, size: str) -> None:
        """Ask for a larger volume."""
        wanted = {"spec": {"resources": {"requests": {"storage": size}}}}
        kind = _KINDS["PersistentVolumeClaim"]
        try:
            await self._client.patch(kind, claim, wanted, namespace=self._namespace, patch_type=PatchType.MERGE)
        except ApiError as exc:
            if exc.status.code in (_FORBIDDEN, _UNPROCESSABLE):
                raise InvalidSpecError(f"spec.storage.size: volume {claim} cannot grow: {exc}") from exc
            raise

    async def set_status(self, name: str, status: Mapping[str, Any]) -> None:
        """Replace the fields of a MillstreamWorker's status."""
        await self._client.patch(
            Workers.Status, name, {"status": status}, namespace=self._namespace, patch_type=PatchType.MERGE
        )


@asynccontextmanager
async def connect(namespace: str) -> AsyncIterator[Cluster]:
    """By the pod's service account, or the kubeconfig. Made for each use, since tokens of service accounts change."""
    async with AsyncClient() as client:
        yield Cluster(client, namespace)
