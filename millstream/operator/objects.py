"""The objects of one MillstreamWorker, as the chart would make them, and what may change in them later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from millstream.operator.spec import WEB_PORT, InvalidSpecError, WorkerSpec, quantity

GROUP, VERSION, KIND, PLURAL = "millstream.dev", "v1alpha1", "MillstreamWorker", "millstreamworkers"
MANAGER = "millstream-operator"
SELECTOR = f"app.kubernetes.io/managed-by={MANAGER},app.kubernetes.io/component=worker"

Object = dict[str, Any]


def selector(name: str) -> dict[str, str]:
    """Labels of the pods of one MillstreamWorker."""
    return {
        "app.kubernetes.io/name": "millstream",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/component": "worker",
    }


def objects(spec: WorkerSpec) -> list[Object]:
    """Everything that belongs to a MillstreamWorker, each owned by it, so that it goes with it."""
    return [_service(spec), _disruption_budget(spec), _stateful_set(spec)]


def must_replace(existing: Mapping[str, Any], desired: Mapping[str, Any]) -> list[str]:
    """Fields that differ and that Kubernetes does not change in a StatefulSet: it is to be made anew, its pods kept.

    Raises InvalidSpecError for what not even that brings about.
    """
    old, new = existing["spec"], desired["spec"]
    differing = [name for name in ("serviceName", "podManagementPolicy", "selector") if old.get(name) != new.get(name)]
    before, after = _claim(old), _claim(new)
    if before is None or after is None:
        return differing + (["volumeClaimTemplates"] if before != after else [])
    if before[1] != after[1]:
        raise InvalidSpecError(
            f"spec.storage.storageClassName: volumes stay in their class, {before[1] or 'the default one'}. Take "
            f"spec.storage out, delete the claims data-{desired['metadata']['name']}-…, and give it again: tables are "
            "restored from Kafka"
        )
    if quantity(after[0]) < quantity(before[0]):
        raise InvalidSpecError(f"spec.storage.size = {after[0]}: volumes cannot shrink; it was {before[0]}")
    return differing + (["volumeClaimTemplates"] if quantity(after[0]) > quantity(before[0]) else [])


def _claim(spec: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """(size, storage class) of the volumes."""
    for template in spec.get("volumeClaimTemplates") or ():
        claim = template["spec"]
        return str(claim["resources"]["requests"]["storage"]), claim.get("storageClassName")
    return None


def _metadata(spec: WorkerSpec, name: str) -> Object:
    owner = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "name": spec.name,
        "uid": spec.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    labels = selector(spec.name) | {"app.kubernetes.io/managed-by": MANAGER}
    return {"name": name, "namespace": spec.namespace, "labels": labels, "ownerReferences": [owner]}


def _service(spec: WorkerSpec) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(spec, f"{spec.name}-workers"),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": selector(spec.name),
            "ports": [{"name": "web", "port": WEB_PORT, "targetPort": "web", "protocol": "TCP"}],
        },
    }


def _disruption_budget(spec: WorkerSpec) -> Object:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(spec, spec.name),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector(spec.name)},
        },
    }


def _stateful_set(spec: WorkerSpec) -> Object:
    labels = selector(spec.name)
    body: Object = {
        "replicas": spec.replicas,
        "serviceName": f"{spec.name}-workers",
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels | {"app.kubernetes.io/managed-by": MANAGER}},
            "spec": _pod(spec),
        },
    }
    if spec.storage:
        claim: Object = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": spec.storage.size}},
        }
        if spec.storage.storage_class:
            claim["storageClassName"] = spec.storage.storage_class
        template = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data"},
            "spec": claim,
        }
        body["volumeClaimTemplates"] = [template]
        body["persistentVolumeClaimRetentionPolicy"] = {"whenDeleted": "Delete", "whenScaled": "Retain"}
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": _metadata(spec, spec.name), "spec": body}


def _pod(spec: WorkerSpec) -> Object:
    volumes: list[Object] = [{"name": "tmp", "emptyDir": {}}]
    if not spec.storage:
        volumes.append({"name": "data", "emptyDir": {}})
    if spec.parquet_claim:
        volumes.append({"name": "parquet", "persistentVolumeClaim": {"claimName": spec.parquet_claim}})
    for number, name in enumerate(spec.certificates):  # 0o440: for the pods' group
        volumes.append({"name": f"certificates-{number}", "secret": {"secretName": name, "defaultMode": 0o440}})
    return {
        "enableServiceLinks": False,  # or Services named millstream-… become MILLSTREAM_… variables, which are refused
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": spec.grace,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(spec.name)},
            }
        ],
        "containers": [_container(spec)],
        "volumes": volumes,
        **spec.pod,
    }


def _container(spec: WorkerSpec) -> Object:
    env: list[Object] = [{"name": name, "value": value} for name, value in spec.settings.items()]
    env.append({"name": "MILLSTREAM_WORKER_SLOT", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})
    env.append({"name": "MILLSTREAM_DATA_DIR", "value": "/data"})
    mounts: list[Object] = [{"name": "data", "mountPath": "/data"}, {"name": "tmp", "mountPath": "/tmp"}]
    if spec.parquet_claim:
        env.append({"name": "MILLSTREAM_PARQUET_DIR", "value": "/parquet"})
        mounts.append({"name": "parquet", "mountPath": "/parquet"})
    for number, name in enumerate(spec.certificates):
        mounts.append({"name": f"certificates-{number}", "mountPath": f"/certificates/{name}", "readOnly": True})
    env.append({"name": "MILLSTREAM_WEB_BIND", "value": "0.0.0.0"})
    env.append({"name": "MILLSTREAM_WEB_PORT", "value": str(WEB_PORT)})
    container: Object = {
        "name": "worker",
        "image": spec.image,
        "command": list(spec.command),
        "env": env,
        "ports": [{"name": "web", "containerPort": WEB_PORT, "protocol": "TCP"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "startupProbe": _probe("/livez", period=5, failures=120),
        "livenessProbe": _probe("/livez", period=10, failures=6),
        "readinessProbe": _probe("/readyz", period=10, failures=3),
        "volumeMounts": mounts,
        **spec.container,
    }
    if spec.secret:
        container["envFrom"] = [{"secretRef": {"name": spec.secret}}]
    return container


def _probe(path: str, *, period: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": "web"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
