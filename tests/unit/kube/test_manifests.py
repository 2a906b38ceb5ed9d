"""deploy/manifests, as rendered from the chart: what must hold of every object, without a cluster.

`make helm` renders them anew and checks them against the schemas of Kubernetes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from millstream.operator.objects import objects
from millstream.operator.spec import RESERVED, parse
from millstream.settings import PREFIX, Settings
from tests.unit.kube.chart import CHART, DEPLOY, MANIFESTS, RENDERED, digest, documents, load, manifests

ALL = [(name, one) for name in RENDERED for one in manifests(name)]
PODS = [(name, one) for name, one in ALL if one["kind"] in ("StatefulSet", "Deployment", "Job")]


def ids(case: Any) -> str:
    return f"{case[0]}-{case[1]['kind']}-{case[1]['metadata']['name']}"


def of(name: str, kind: str) -> list[dict[str, Any]]:
    return [one for one in manifests(name) if one["kind"] == kind]


def pod_of(one: dict[str, Any]) -> dict[str, Any]:
    return dict(one["spec"]["template"])


@pytest.mark.parametrize("name", RENDERED)
def test_the_manifests_are_rendered_from_the_chart_as_it_is(name: str) -> None:  # DF-66
    head = (MANIFESTS / f"{name}.yaml").read_text("utf-8").partition("\n---")[0]
    assert f"chart: {digest(name)}" in head, "run: make helm"


def test_every_object_stands_once_and_says_what_it_is() -> None:
    for name in RENDERED:
        found = [(one["apiVersion"], one["kind"], one["metadata"]["name"]) for one in manifests(name)]
        assert len(found) == len(set(found)) >= 7
        for one in manifests(name):
            assert one["metadata"]["labels"]["app.kubernetes.io/name"] == "millstream"
            assert "helm.sh" not in str(one["metadata"]), "these are for kubectl"


@pytest.mark.parametrize("case", PODS, ids=ids)
def test_every_pod_is_locked_down(case: Any) -> None:  # DF-70
    pod = pod_of(case[1])["spec"]
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert container["resources"]["limits"]["memory"]
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
        assert not container["image"].endswith(":latest")
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    claims = {claim["metadata"]["name"] for claim in case[1]["spec"].get("volumeClaimTemplates", [])}
    mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
    assert mounted == volumes | claims


@pytest.mark.parametrize("case", PODS, ids=ids)
def test_every_variable_is_a_setting_and_what_it_comes_from_is_there(case: Any) -> None:
    name, one = case
    known = {PREFIX + setting.upper() for setting in Settings.model_fields}
    maps = {found["metadata"]["name"]: set(found["data"]) for found in of(name, "ConfigMap")}
    for container in pod_of(one)["spec"]["containers"]:
        given = {variable["name"] for variable in container.get("env", [])}
        for source in container.get("envFrom", []):
            given |= maps[source["configMapRef"]["name"]] if "configMapRef" in source else set()
        assert given
        assert given <= known


@pytest.mark.parametrize("name", RENDERED)
def test_the_configmap_is_a_valid_configuration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = of(name, "ConfigMap")
    for variable, value in found["data"].items():
        assert isinstance(value, str)
        monkeypatch.setenv(variable, value)
    settings = Settings()
    assert settings.model_fields_set == {variable.removeprefix(PREFIX).lower() for variable in found["data"]}
    assert not settings.model_fields_set & set(RESERVED)
    assert settings.log_format == "json"
    assert settings.topic_replication_factor == 3


@pytest.mark.parametrize("name", RENDERED)
def test_a_worker_is_who_it_was_and_is_given_the_time_to_stop(name: str) -> None:
    (workers,) = of(name, "StatefulSet")
    pod = pod_of(workers)["spec"]
    (worker,) = pod["containers"]
    variables = {v["name"]: v.get("value", v.get("valueFrom")) for v in worker["env"]}
    assert variables["MILLSTREAM_WORKER_SLOT"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert variables["MILLSTREAM_WEB_BIND"] == "0.0.0.0", "the default would answer no probe"
    assert variables["MILLSTREAM_DATA_DIR"] in {mount["mountPath"] for mount in worker["volumeMounts"]}
    assert [(p, worker[p]["httpGet"]["path"]) for p in ("startupProbe", "livenessProbe", "readinessProbe")] == [
        ("startupProbe", "/livez"),
        ("livenessProbe", "/livez"),
        ("readinessProbe", "/readyz"),
    ]
    (config,) = of(name, "ConfigMap")
    shutdown = float(config["data"].get("MILLSTREAM_SHUTDOWN_TIMEOUT", 30))
    assert pod["terminationGracePeriodSeconds"] > 2 * shutdown + 10


@pytest.mark.parametrize("name", RENDERED)
def test_selectors_find_the_pods_they_are_meant_for(name: str) -> None:
    pods = {ids((name, one)): pod_of(one)["metadata"]["labels"] for n, one in PODS if n == name}
    (workers,) = of(name, "StatefulSet")
    key = ids((name, workers))
    selectors = {one["metadata"]["name"]: one["spec"]["selector"] for one in of(name, "Service")}
    selectors |= {
        ids((name, one)): one["spec"]["selector"]["matchLabels"] for one in (*of(name, "PodDisruptionBudget"), workers)
    }
    for one in of(name, "Deployment"):
        for wanted in (one["spec"]["selector"]["matchLabels"], selectors.pop("millstream-relay-metrics")):
            assert {p for p, labels in pods.items() if wanted.items() <= labels.items()} == {ids((name, one))}
    for who, wanted in selectors.items():
        found = {pod for pod, labels in pods.items() if wanted.items() <= labels.items()}
        assert found == {key}, who
    assert workers["spec"]["serviceName"] in selectors
    (policy,) = of(name, "NetworkPolicy")
    wanted = policy["spec"]["podSelector"]["matchLabels"]
    assert all(wanted.items() <= labels.items() for labels in pods.values())
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    (rule,) = policy["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 6066}]
    for service in of(name, "Service"):
        assert service["spec"]["publishNotReadyAddresses"] is True, "a restore is to be seen by Prometheus"


def test_migration_and_relay_get_what_they_need() -> None:
    (job,) = of("changefeeds", "Job")
    (container,) = pod_of(job)["spec"]["containers"]
    assert container["command"] == ["millstream", "migrate"]
    assert container["env"][0]["valueFrom"]["secretKeyRef"]["name"] == "catalog-owner"
    (relay,) = of("changefeeds", "Deployment")
    (container,) = pod_of(relay)["spec"]["containers"]
    assert container["command"] == ["millstream", "outbox", "relay", "--create-slot"]
    assert {v["name"]: v["value"] for v in container["env"]} == {
        "MILLSTREAM_WEB_BIND": "0.0.0.0",
        "MILLSTREAM_METRICS_PORT": "6066",
    }
    assert [(p["name"], p["containerPort"]) for p in container["ports"]] == [("web", 6066)]
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/livez", "port": "web"}
    assert "readinessProbe" not in container, "a relay has no /readyz"
    (config,) = of("changefeeds", "ConfigMap")
    assert config["data"]["MILLSTREAM_OUTBOX_VIA"] == "replication"
    assert config["data"]["MILLSTREAM_OUTBOX_TOPICS"] == "order=shop.order.events,video=catalog.video.events"


def test_the_operators_pods_are_those_of_the_chart() -> None:
    """They differ in what is named after the release, and in where settings come from."""
    worker = load(DEPLOY / "operator" / "example.yaml")
    worker["metadata"] |= {"namespace": "default", "uid": "u"}
    made = {one["kind"]: one for one in objects(parse(worker))}
    (chart,) = of("archive", "StatefulSet")
    (config,) = of("archive", "ConfigMap")
    ours, theirs = pod_of(made["StatefulSet"])["spec"], pod_of(chart)["spec"]
    del theirs["serviceAccountName"]
    for pod in (ours, theirs):
        del pod["topologySpreadConstraints"][0]["labelSelector"]
        (container,) = pod["containers"]
        container["env"] = {v["name"]: v.get("value", v.get("valueFrom")) for v in container["env"]}
        del container["envFrom"]
        for port in container["ports"]:
            port.setdefault("protocol", "TCP")
    theirs["containers"][0]["env"] |= config["data"]
    theirs["containers"][0].pop("imagePullPolicy")
    for pod in (ours, theirs):
        pod["volumes"].sort(key=lambda volume: volume["name"])
    assert ours == theirs
    one, other = made["StatefulSet"]["spec"], chart["spec"]
    same = ("replicas", "podManagementPolicy", "volumeClaimTemplates", "persistentVolumeClaimRetentionPolicy")
    assert {key: one[key] for key in same} == {key: other[key] for key in same}
    (service,) = (found for found in of("archive", "Service") if found["spec"].get("clusterIP") == "None")
    assert {k: v for k, v in made["Service"]["spec"].items() if k not in ("selector", "ports")} == {
        k: v for k, v in service["spec"].items() if k not in ("selector", "ports")
    }
    (budget,) = of("archive", "PodDisruptionBudget")
    assert {k: v for k, v in made["PodDisruptionBudget"]["spec"].items() if k != "selector"} == {
        k: v for k, v in budget["spec"].items() if k != "selector"
    }


def test_the_charts_alert_rules_are_the_archives_own() -> None:
    """deploy/prometheus/rules.yml is the source; copy it to files/rules.yml when it changes."""
    assert (CHART / "files" / "rules.yml").read_text("utf-8") == (DEPLOY / "prometheus" / "rules.yml").read_text(
        "utf-8"
    )


def test_the_operators_own_pod_is_locked_down_and_may_do_what_it_does_only() -> None:
    found = documents(DEPLOY / "operator" / "operator.yaml")
    (deployment,) = (one for one in found if one["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert deployment["spec"]["replicas"] == 1
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["containers"][0]["command"][-1] == "millstream.operator.handlers"
    (role,) = (one for one in found if one["kind"] == "ClusterRole")
    for rule in role["rules"]:
        assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
        assert "secrets" not in rule["resources"]


def test_the_operators_image_adds_to_millstreams_what_the_lock_names() -> None:
    folder = DEPLOY / "operator"
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), folder / "Dockerfile"], capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("", 0)
    pin = re.compile(r"^([a-z0-9-]+==\S+)", re.MULTILINE)
    ours = set(pin.findall((folder / "requirements.lock").read_text("utf-8")))
    assert ours <= set(pin.findall((DEPLOY.parent / "requirements.lock").read_text("utf-8"))), "run: make lock"
    assert {line.partition("==")[0] for line in ours} >= {"kopf", "lightkube"}
    (deployment,) = (one for one in documents(folder / "operator.yaml") if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (command,) = re.findall(r"^CMD (.*)$", (folder / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert set(json.loads(command)) <= set(container["command"])
