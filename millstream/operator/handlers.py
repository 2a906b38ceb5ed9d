"""What kopf calls. `kopf run -m millstream.operator.handlers --all-namespaces --standalone`

No handler needs a finalizer: a MillstreamWorker can be deleted while no operator runs, and what it owns goes with it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import kopf
from lightkube import ApiError

from millstream.operator.cluster import connect
from millstream.operator.objects import GROUP, KIND, PLURAL, SELECTOR, VERSION
from millstream.operator.reconcile import NotYetError, reconcile, refresh
from millstream.operator.spec import InvalidSpecError

_PREFIX = f"operator.{GROUP}"
_AGAIN = 5.0

_locks: dict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
"""(namespace, name) -> one at a time, so that no older status is written over a newer one."""


@kopf.on.startup()
async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
    """Notes of what was done stand in annotations; only our own pods and StatefulSets are watched."""
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=_PREFIX)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=_PREFIX)
    settings.watching.label_selectors["pods"] = SELECTOR
    settings.watching.label_selectors["apps", "statefulsets"] = SELECTOR


@kopf.on.resume(GROUP, VERSION, PLURAL)
@kopf.on.create(GROUP, VERSION, PLURAL)
@kopf.on.update(GROUP, VERSION, PLURAL, field="spec")
async def changed(body: kopf.Body, namespace: str | None, name: str, **_: Any) -> None:
    """A MillstreamWorker is new or another one, or the operator has just started."""
    async with _locks[str(namespace), name], connect(str(namespace)) as cluster:
        try:
            worker = await cluster.get(KIND, name)
            if worker is not None and not worker["metadata"].get("deletionTimestamp"):
                await reconcile(cluster, worker)
        except InvalidSpecError as exc:
            kopf.event(body, type="Warning", reason="InvalidSpec", message=str(exc))
            raise kopf.PermanentError(str(exc)) from exc
        except NotYetError as exc:
            raise kopf.TemporaryError(str(exc), delay=1) from exc
        except ApiError as exc:
            raise kopf.TemporaryError(str(exc), delay=_AGAIN) from exc


@kopf.on.event("apps", "v1", "statefulsets")
@kopf.on.event("", "v1", "pods")
async def happened(
    labels: kopf.Labels, namespace: str | None, resource: kopf.Resource, logger: kopf.Logger, **_: Any
) -> None:
    """Something happened to what belongs to a MillstreamWorker."""
    name = labels.get("app.kubernetes.io/instance", "")
    async with _locks[str(namespace), name], connect(str(namespace)) as cluster:
        try:
            await refresh(cluster, name, only_tell=resource.plural == "pods")
        except (InvalidSpecError, NotYetError, ApiError) as exc:
            logger.warning(f"{KIND} {namespace}/{name}: {exc}")
