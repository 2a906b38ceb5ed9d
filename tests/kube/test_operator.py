"""The operator against a real kube-apiserver and the real controllers. The kubelet is played: no node, no container."""

from __future__ import annotations

import pytest

from tests.kube.cluster import Api, Kubelet, Operator, until
from tests.kube.conftest import Space
from tests.unit.kube.chart import MANIFESTS, RENDERED
from tests.unit.kube.workers import worker

pytestmark = pytest.mark.kubernetes

APPS, POLICY = "/apis/apps/v1", "/apis/policy/v1"


def owned(space: Space) -> list[str]:
    """All that the operator makes, in this namespace."""
    kinds = [("services", "/api/v1"), ("statefulsets", APPS), ("poddisruptionbudgets", POLICY), ("pods", "/api/v1")]
    return [f"{plural}/{one['metadata']['name']}" for plural, group in kinds for one in space.items(plural, group)]


def test_a_worker_becomes_a_stateful_set_and_tells_when_it_is_ready(space: Space) -> None:  # DF-67
    assert "created" in space.apply(worker())
    status = space.until_phase("dumps", "Ready", readyReplicas=2, updatedReplicas=2, lastError="")
    assert {c["type"]: c["status"] for c in status["conditions"]} == {"Valid": "True", "Ready": "True"}
    assert owned(space) == [
        *("services/dumps-workers", "statefulsets/dumps", "poddisruptionbudgets/dumps"),
        *("pods/dumps-0", "pods/dumps-1"),
    ]
    head, line = space.kubectl("get", "msw").splitlines()
    assert head.split() == ["NAME", "PHASE", "DESIRED", "READY", "UP-TO-DATE", "AGE"]
    assert line.split()[:5] == ["dumps", "Ready", "2", "2", "2"]
    assert {claim["metadata"]["name"] for claim in space.items("persistentvolumeclaims")} == {
        *("data-dumps-0", "data-dumps-1")
    }


def test_kubectl_scale_scales_it_up_down_and_to_nothing(space: Space) -> None:
    space.apply(worker())
    space.until_phase("dumps", "Ready", readyReplicas=2)
    for replicas, phase in ((4, "Ready"), (1, "Ready"), (0, "Stopped"), (2, "Ready")):
        space.kubectl("scale", "millstreamworker/dumps", f"--replicas={replicas}")
        space.until_phase("dumps", phase, replicas=replicas, readyReplicas=replicas)
        assert len(space.items("pods")) == replicas


def test_a_new_image_reaches_every_worker(space: Space) -> None:
    space.apply(worker())
    space.until_phase("dumps", "Ready")
    space.apply(worker(image="millstream:0.2.0"))
    space.until_phase("dumps", "Ready", readyReplicas=2, updatedReplicas=2)
    assert {pod["spec"]["containers"][0]["image"] for pod in space.items("pods")} == {"millstream:0.2.0"}


def test_a_worker_that_fails_is_told_with_its_last_words(space: Space, kubelet: Kubelet) -> None:
    space.apply(worker())
    space.until_phase("dumps", "Ready")
    last = "Error: offsets of group millstream expired"
    kubelet.broken["dumps-1"] = {
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
        "lastState": {
            "terminated": {"exitCode": 70, "reason": "Error", "message": last, "finishedAt": "2026-11-23T08:00:00Z"}
        },
    }
    told = f"dumps-1: exit code 70 (an error nobody may continue past): {last}"
    status = space.until_phase("dumps", "Degraded", readyReplicas=1, lastError=told)
    assert {c["type"]: c["status"] for c in status["conditions"]} == {"Valid": "True", "Ready": "False"}
    assert "exit code 70" in space.kubectl("get", "msw", "-o", "wide")
    kubelet.broken.clear()
    space.until_phase("dumps", "Ready", readyReplicas=2)


def test_an_invalid_setting_is_told_and_changes_nothing(space: Space) -> None:
    space.apply(worker())
    space.until_phase("dumps", "Ready")
    before = space.stateful_set("dumps")
    assert before is not None
    space.apply(worker(settings={"bootstrap_servers": "kafka:9092", "chunk_max_row": 5}))
    status = space.until_phase("dumps", "Invalid", readyReplicas=2)
    assert "chunk_max_row: unknown setting; did you mean chunk_max_rows?" in status["lastError"]
    after = space.stateful_set("dumps")
    assert after is not None
    assert after["metadata"]["generation"] == before["metadata"]["generation"]

    def event() -> bool:
        return any("chunk_max_row" in one.get("message", "") for one in space.items("events"))

    until(event, "an event tells of it")
    space.apply(worker())
    space.until_phase("dumps", "Ready", lastError="")


def test_what_the_api_server_refuses_of_the_pods_is_told(space: Space) -> None:
    wrong = worker(resources={"requests": {"memory": "3Gi"}, "limits": {"memory": "2Gi"}})
    space.apply(wrong)
    assert "must be less than or equal to memory limit" in space.until_phase("dumps", "Invalid")["lastError"]


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"image": None}, "spec.image: Required value"),
        ({"replicas": -1}, "should be greater than or equal to 0"),
        ({"settings": None}, "spec.settings: Required value"),
        ({"parquetClaim": "x"}, "with parquetClaim there can be one worker"),
        ({"storage": {"size": "10 GB"}}, "spec.storage.size"),
        ({"storages": {"size": "1Gi"}}, 'unknown field "spec.storages"'),
    ],
)
def test_kubectl_refuses_what_the_schema_knows_to_be_wrong(space: Space, over: dict[str, object], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        space.apply(worker(**over))


def test_kubectl_refuses_names_too_long_and_changes_that_volumes_cannot_make(space: Space) -> None:
    long = worker()
    long["metadata"]["name"] = "d" * 53
    with pytest.raises(AssertionError, match="at most 52 characters"):
        space.apply(long)
    space.apply(worker())
    with pytest.raises(AssertionError, match="volumes cannot shrink"):
        space.apply(worker(storage={"size": "5Gi"}))
    with pytest.raises(AssertionError, match="volumes stay in their class"):
        space.apply(worker(storage={"size": "10Gi", "storageClassName": "fast"}))


def test_larger_volumes_keep_pods_running_though_the_stateful_set_cannot_change(space: Space, api: Api) -> None:
    name = f"growing-{space.name}"
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": "example.com/none",
        "allowVolumeExpansion": True,
    }
    api.kubectl("apply", "-f", "-", given=storage_class)
    space.apply(worker(storage={"size": "10Gi", "storageClassName": name}))
    space.until_phase("dumps", "Ready")
    for claim in space.items("persistentvolumeclaims"):  # what a provisioner would do
        path = f"/api/v1/namespaces/{space.name}/persistentvolumeclaims/{claim['metadata']['name']}"
        api.merge(path, {"spec": {"volumeName": f"pv-{claim['metadata']['name']}"}})
        api.merge(f"{path}/status", {"status": {"phase": "Bound", "capacity": {"storage": "10Gi"}}})
    before, pods = space.stateful_set("dumps"), {pod["metadata"]["uid"] for pod in space.items("pods")}
    space.apply(worker(storage={"size": "20Gi", "storageClassName": name}))

    def grown() -> bool:
        after = space.stateful_set("dumps")
        assert before is not None
        assert after is not None
        (template,) = after["spec"]["volumeClaimTemplates"]
        assert after["metadata"]["uid"] != before["metadata"]["uid"]
        return bool(template["spec"]["resources"]["requests"]["storage"] == "20Gi")

    until(grown, "the StatefulSet has been made anew")
    space.until_phase("dumps", "Ready", readyReplicas=2)
    claims = {
        c["metadata"]["name"]: c["spec"]["resources"]["requests"]["storage"]
        for c in space.items("persistentvolumeclaims")
    }
    assert claims == {"data-dumps-0": "20Gi", "data-dumps-1": "20Gi"}
    assert {pod["metadata"]["uid"] for pod in space.items("pods")} == pods, "workers went on"

    def adopted() -> bool:
        after = space.stateful_set("dumps")
        assert after is not None
        owners = {owner["uid"] for pod in space.items("pods") for owner in pod["metadata"].get("ownerReferences", [])}
        return owners == {after["metadata"]["uid"]}

    until(adopted, "the new StatefulSet has taken the pods over")


def test_volumes_that_cannot_grow_are_told_and_nothing_is_deleted(space: Space) -> None:
    space.apply(worker())
    space.until_phase("dumps", "Ready")
    before = space.stateful_set("dumps")
    space.apply(worker(storage={"size": "20Gi"}))
    assert "volume data-dumps-0 cannot grow" in space.until_phase("dumps", "Invalid")["lastError"]
    after = space.stateful_set("dumps")
    assert before is not None
    assert after is not None
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def test_deleting_it_deletes_all_of_it_also_while_no_operator_runs(
    space: Space, operator: Operator, command: list[str]
) -> None:
    space.apply(worker())
    space.until_phase("dumps", "Ready")
    assert len(owned(space)) == 5
    operator.stop()
    try:
        space.kubectl("delete", "millstreamworker", "dumps", "--timeout=20s")
        until(lambda: not owned(space), "everything is gone")
        until(lambda: not space.items("persistentvolumeclaims"), "the volumes are gone, too")
    finally:
        operator.start(command)


def test_an_operator_that_was_away_catches_up(space: Space, operator: Operator, command: list[str]) -> None:
    space.apply(worker())
    space.until_phase("dumps", "Ready")
    operator.stop()
    try:
        space.apply(worker(replicas=3, image="millstream:0.2.0"))
    finally:
        operator.start(command)
    space.until_phase("dumps", "Ready", readyReplicas=3, updatedReplicas=3)


def test_what_somebody_changes_or_deletes_by_hand_is_put_back(space: Space) -> None:
    space.apply(worker())
    space.until_phase("dumps", "Ready")
    space.kubectl("scale", "statefulset/dumps", "--replicas=5")
    until(lambda: (space.stateful_set("dumps") or {})["spec"]["replicas"] == 2, "the number is put back")
    space.until_phase("dumps", "Ready", replicas=2)
    before = space.stateful_set("dumps")
    assert before is not None
    space.kubectl("delete", "statefulset", "dumps")
    until(
        lambda: (space.stateful_set("dumps") or before)["metadata"]["uid"] != before["metadata"]["uid"],
        "the StatefulSet is back",
    )
    space.until_phase("dumps", "Ready", readyReplicas=2)


def test_what_somebody_else_made_under_its_name_is_left_alone(space: Space) -> None:
    space.kubectl("create", "service", "clusterip", "dumps-workers", "--tcp=80")
    space.apply(worker())
    told = space.until_phase("dumps", "Invalid")["lastError"]
    assert told.startswith("Service dumps-workers exists in namespace")
    assert space.stateful_set("dumps") is None


@pytest.mark.parametrize("name", RENDERED)
def test_the_api_server_takes_the_plain_manifests(api: Api, name: str) -> None:  # DF-66
    told = api.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", str(MANIFESTS / f"{name}.yaml"))
    assert "statefulset.apps/millstream created (server dry run)" in told
