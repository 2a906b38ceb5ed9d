"""What a MillstreamWorker's status says of StatefulSet and pods, and what the operator does step by step."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from millstream.operator.objects import objects, selector
from millstream.operator.reconcile import NotYetError, reconcile, refresh
from millstream.operator.spec import InvalidSpecError, parse
from millstream.operator.status import refused, status_of
from tests.unit.kube.chart import DEPLOY, load
from tests.unit.kube.workers import FakeCluster, worker

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


def seen(replicas: int = 2, ready: int = 2, updated: int = 2, **more: Any) -> dict[str, Any]:
    made = objects(parse(worker()))[-1]
    made["metadata"]["generation"] = 1
    counts = {"replicas": replicas, "readyReplicas": ready, "updatedReplicas": updated, "observedGeneration": 1}
    return made | {"status": counts | more}


def pod(name: str, *, ready: bool = True, **container: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {
        "kind": "Pod",
        "metadata": {"name": name, "labels": selector("dumps")},
        "status": {"conditions": conditions, "containerStatuses": [{"name": "worker", **container}]},
    }


def ended(code: int, message: str = "", at: str = "2026-11-23T07:59:00Z", reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, "finishedAt": at, "reason": reason}}


@pytest.mark.parametrize(
    ("replicas", "stateful_set", "phase"),
    [
        (2, seen(), "Ready"),
        (2, None, "Progressing"),
        (2, seen(ready=1), "Progressing"),
        (2, seen(updated=1), "Progressing"),
        (3, seen(), "Progressing"),
        (1, seen(), "Progressing"),
        (2, seen(observedGeneration=0), "Progressing"),
        (0, seen(0, 0, 0), "Stopped"),
        (0, seen(1, 1, 1), "Progressing"),
    ],
)
def test_the_phase_follows_from_what_runs(replicas: int, stateful_set: Any, phase: str) -> None:
    status = status_of(worker(replicas=replicas), stateful_set, [], NOW)
    assert status["phase"] == phase
    ready = next(c for c in status["conditions"] if c["type"] == "Ready")
    assert ready["status"] == ("True" if phase == "Ready" else "False")


LOG = 'INFO worker starts\n{"operation":"worker_failed","description":"offsets expired"}\n'


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (
            pod("dumps-1", ready=False, state=ended(70, LOG)),
            f"dumps-1: exit code 70 (an error nobody may continue past): {LOG.splitlines()[1]}",
        ),
        (
            pod(
                "dumps-1",
                ready=False,
                state={"waiting": {"reason": "CrashLoopBackOff"}},
                lastState=ended(1, "Error: x"),
            ),
            "dumps-1: exit code 1 (the settings are wrong): Error: x",
        ),
        (pod("dumps-1", ready=False, lastState=ended(137, reason="OOMKilled")), "dumps-1: exit code 137 (OOMKilled)"),
        (pod("dumps-1", ready=False, state=ended(3)), "dumps-1: exit code 3"),
        (
            pod("dumps-1", ready=False, state={"waiting": {"reason": "ErrImagePull", "message": "no such image"}}),
            "dumps-1: ErrImagePull: no such image",
        ),
        (
            {
                "kind": "Pod",
                "metadata": {"name": "dumps-1"},
                "status": {
                    "conditions": [
                        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
                    ]
                },
            },
            "dumps-1: Unschedulable: 0/3 nodes",
        ),
    ],
)
def test_a_pod_in_trouble_is_named_with_the_last_line_of_its_log(trouble: dict[str, Any], told: str) -> None:
    status = status_of(worker(), seen(ready=1), [pod("dumps-0"), trouble], NOW)
    assert (status["phase"], status["lastError"]) == ("Degraded", told)


def test_starting_and_stopping_pods_are_no_trouble() -> None:
    pods = [
        pod("dumps-0", ready=False, state={"waiting": {"reason": "ContainerCreating"}}),
        pod("dumps-1", ready=False, state=ended(0)),
    ]
    pods.append(pod("dumps-2", ready=False, state=ended(70)))
    pods[-1]["metadata"]["deletionTimestamp"] = "2026-11-23T07:59:00Z"
    status = status_of(worker(), seen(ready=0), pods, NOW)
    assert (status["phase"], status["lastError"]) == ("Progressing", "")


def test_the_last_error_is_kept_when_the_pod_is_ready_again() -> None:
    pods = [
        pod("dumps-0", lastState=ended(75, at="2026-11-23T06:00:00Z")),
        pod("dumps-1", lastState=ended(70, at="2026-11-23T07:00:00Z")),
    ]
    status = status_of(worker(), seen(), pods, NOW)
    assert status["phase"] == "Ready"
    assert status["lastError"].startswith("dumps-1: exit code 70")


def test_a_condition_keeps_the_time_at_which_it_changed() -> None:
    first = status_of(worker(), seen(), [], NOW)
    later = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
    assert status_of(worker() | {"status": first}, seen(), [], later) == first
    changed = status_of(worker() | {"status": first}, seen(ready=1), [], later)
    times = {c["type"]: c["lastTransitionTime"] for c in changed["conditions"]}
    assert times == {"Valid": "2026-11-23T08:00:00Z", "Ready": "2026-11-23T09:00:00Z"}


def test_a_refused_spec_leaves_what_runs_and_says_why() -> None:
    before = worker() | {"status": status_of(worker(), seen(), [], NOW)}
    status = refused(before, "spec.image: required", NOW)
    assert (status["phase"], status["lastError"], status["readyReplicas"]) == ("Invalid", "spec.image: required", 2)
    assert {c["type"]: c["status"] for c in status["conditions"]} == {"Valid": "False", "Ready": "True"}
    assert refused(worker(), "x", NOW)["conditions"][1]["message"] == "nothing was started"


def test_the_status_fits_the_schema_of_the_crd() -> None:
    import jsonschema

    (version,) = load(DEPLOY / "operator" / "crd.yaml")["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    for status in (status_of(worker(), seen(), [], NOW), refused(worker(), "x", NOW)):
        jsonschema.validate(json.loads(json.dumps(status)), schema | {"additionalProperties": False})


async def test_what_is_missing_is_made_and_the_status_is_told_once() -> None:
    cluster = FakeCluster(worker())
    await reconcile(cluster, worker())
    assert [call[:2] for call in cluster.calls] == [
        ("apply", "Service"),
        ("apply", "PodDisruptionBudget"),
        ("apply", "StatefulSet"),
    ]
    assert cluster.statuses[-1]["phase"] == "Progressing"
    told = len(cluster.statuses)
    await refresh(cluster, "dumps")
    assert len(cluster.statuses) == told, "nothing changed"


async def test_a_deleted_stateful_set_is_made_anew() -> None:
    cluster = FakeCluster(worker())
    await reconcile(cluster, worker())
    del cluster.objects["StatefulSet", "dumps"]
    await refresh(cluster, "dumps")
    assert ("StatefulSet", "dumps") in cluster.objects


async def test_nothing_is_made_for_a_worker_that_goes_or_is_gone() -> None:
    going = worker()
    going["metadata"]["deletionTimestamp"] = "2026-11-23T08:00:00Z"
    for cluster in (FakeCluster(going), FakeCluster()):
        await refresh(cluster, "dumps")
        assert cluster.calls == cluster.statuses == []


async def test_an_invalid_spec_changes_nothing_and_is_told_in_the_status() -> None:
    cluster = FakeCluster(worker())
    await reconcile(cluster, worker())
    calls = list(cluster.calls)
    wrong = worker(settings={"bootstrap_servers": "kafka:9092", "chunk_max_row": 5})
    cluster.objects["MillstreamWorker", "dumps"] = wrong
    with pytest.raises(InvalidSpecError):
        await reconcile(cluster, wrong)
    await refresh(cluster, "dumps")
    assert cluster.calls == calls
    assert "did you mean chunk_max_rows" in cluster.objects["MillstreamWorker", "dumps"]["status"]["lastError"]


async def test_what_somebody_else_made_is_not_taken_over() -> None:
    other = objects(parse(worker()))[-1]
    del other["metadata"]["ownerReferences"]
    cluster = FakeCluster(other, worker())
    with pytest.raises(InvalidSpecError, match="StatefulSet dumps exists in namespace default and is not of this"):
        await reconcile(cluster, worker())
    assert cluster.calls == []


async def test_larger_volumes_make_the_stateful_set_anew_and_leave_its_pods() -> None:
    cluster = FakeCluster(worker())
    await reconcile(cluster, worker())
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "data-dumps-0", "labels": selector("dumps")}}
    cluster.objects["PersistentVolumeClaim", "data-dumps-0"] = claim
    larger = worker(storage={"size": "20Gi"})
    cluster.calls.clear()
    with pytest.raises(NotYetError, match="volumeClaimTemplates cannot be changed; its pods stay"):
        await reconcile(cluster, larger)
    assert cluster.calls == [("grow", "data-dumps-0", "20Gi"), ("orphan", "StatefulSet", "dumps")]
    await reconcile(cluster, larger)
    (template,) = cluster.objects["StatefulSet", "dumps"]["spec"]["volumeClaimTemplates"]
    assert template["spec"]["resources"]["requests"]["storage"] == "20Gi"


async def test_what_is_being_deleted_is_waited_for() -> None:
    going = objects(parse(worker()))[-1]
    going["metadata"]["deletionTimestamp"] = "2026-11-23T08:00:00Z"
    with pytest.raises(NotYetError, match="StatefulSet dumps is being deleted"):
        await reconcile(FakeCluster(going, worker()), worker())
