"""The chart through Helm itself: linted, rendered, checked against Kubernetes' schemas; what is wrong is refused."""

from __future__ import annotations

import subprocess

import pytest
import yaml

from tests.kube.render import plain, template
from tests.kube.tools import KUBERNETES, SCHEMAS, tool
from tests.unit.docs.documents import code_blocks
from tests.unit.kube.chart import CHART, CI, MANIFESTS, RENDERED, documents

pytestmark = pytest.mark.kubernetes

OTHERS = "ServiceMonitor,PrometheusRule,ScaledObject"
"""Kinds of the Prometheus operator and of KEDA, whose schemas are not Kubernetes' own."""


def run(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, input=given, capture_output=True, text=True)


@pytest.mark.parametrize("name", [None, *CI])
def test_helm_lint_has_nothing_to_say(name: str | None) -> None:  # DF-68
    values = ["--values", str(CI[name])] if name else []
    done = run(tool("helm"), "lint", "--strict", "--kube-version", KUBERNETES, str(CHART), *values)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("name", [None, *CI])
def test_what_it_renders_fits_the_schemas_of_kubernetes(name: str | None) -> None:
    location = f"{SCHEMAS}/v{KUBERNETES.rpartition('.')[0]}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json"
    done = run(
        *(tool("kubeconform"), "-strict", "-summary", "-skip", OTHERS, "-schema-location", location, "-"),
        given=template(name),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Invalid: 0, Errors: 0" in done.stdout
    print(done.stdout)


@pytest.mark.parametrize("name", RENDERED)
def test_the_committed_manifests_are_what_helm_renders(name: str) -> None:  # DF-66
    assert (MANIFESTS / f"{name}.yaml").read_text("utf-8") == plain(name, template(name, "--skip-tests"))


def test_the_operators_own_manifests_fit_the_schemas_of_kubernetes() -> None:
    location = f"{SCHEMAS}/v{KUBERNETES.rpartition('.')[0]}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json"
    folder = MANIFESTS.parent / "operator"
    files = [str(folder / name) for name in ("crd.yaml", "operator.yaml")]
    done = run(tool("kubeconform"), "-strict", "-summary", "-schema-location", location, *files)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["replicas=3"], "additional properties 'replicas' not allowed"),
        (["settings.chunk_max_row=5"], "additional properties 'chunk_max_row' not allowed"),
        (["settings.bootstrap_servers=null"], "missing property 'bootstrap_servers'"),
        (["parquet.enabled=true"], "it takes replicaCount: 1 and no autoscaling"),
        (["terminationGracePeriodSeconds=70"], "must be above 70, within which a worker ends by itself"),
        (["settings.shutdown_timeout=60", "terminationGracePeriodSeconds=90"], "must be above 130"),
        (["relay.enabled=true"], "the relay needs secrets.postgres_url"),
        (["migrate.enabled=true"], "needs secrets.postgres_url"),
        (["secrets.existingSecret=a", "secrets.postgres_url=b"], "give one of them"),
        (["relay.createSlot=true"], "polling needs no slot"),
        (["settings.security_protocol=SASL_SSL"], "needs secrets.existingSecret with MILLSTREAM_SASL_PASSWORD"),
        (["settings.security_protocol=SSL", "autoscaling.enabled=true"], "KEDA has to log in too"),
        (["autoscaling.enabled=true", "autoscaling.minReplicas=9"], "must be at most autoscaling.maxReplicas = 8"),
    ],
)
def test_helm_refuses_what_cannot_work_and_names_it(options: list[str], told: str) -> None:
    words = [word for option in options for word in ("--set", option)]
    done = run(tool("helm"), "template", "millstream", str(CHART), "--kube-version", KUBERNETES, *words)
    assert done.returncode != 0
    assert told in done.stderr


def test_certificates_are_files_of_workers_and_relays_and_keda_logs_in_too() -> None:
    found = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(template("everything")) if one}
    for kind, name in (("StatefulSet", "worker"), ("Deployment", "relay")):
        (pod,) = (one["spec"]["template"]["spec"] for (of, _), one in found.items() if of == kind)
        volumes = {volume["name"]: volume.get("secret") for volume in pod["volumes"]}
        assert volumes["certificates-0"] == {"secretName": "kafka-ca", "defaultMode": 0o440}
        assert volumes["certificates-1"] == {"secretName": "millstream.user", "defaultMode": 0o440}
        (container,) = (c for c in pod["containers"] if c["name"] == name)
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert mounts["certificates-1"]["mountPath"] == "/certificates/millstream.user"
        assert mounts["certificates-1"]["readOnly"] is True
    (scaled,) = (one for (kind, _), one in found.items() if kind == "ScaledObject")
    assert scaled["spec"]["triggers"][0]["authenticationRef"] == {"name": "kafka"}


def test_whole_numbers_stay_whole_and_secrets_stay_in_secrets() -> None:
    found = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(template("parquet")) if one}
    data = found["ConfigMap", "millstream"]["data"]
    assert data["MILLSTREAM_CHUNK_MAX_ROWS"] == "1000000"
    assert data["MILLSTREAM_SHUTDOWN_TIMEOUT"] == "12.5"
    assert data["MILLSTREAM_EXACTLY_ONCE"] == "false"
    for (kind, _), one in found.items():
        assert ("secret@" in str(one)) == (kind == "Secret")
    hook = found["Secret", "millstream-migrate"]["metadata"]["annotations"]
    assert hook["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert int(hook["helm.sh/hook-weight"]) < 0, "before the Job that reads it"


def test_alert_rules_go_to_the_prometheus_operator_word_by_word() -> None:
    (rule,) = (one for one in yaml.safe_load_all(template("everything")) if one and one["kind"] == "PrometheusRule")
    (source,) = documents(CHART / "files" / "rules.yml")
    assert rule["spec"] == source


def test_prometheus_is_sent_to_workers_and_relays() -> None:
    found = [one for one in yaml.safe_load_all(template("everything")) if one]
    (monitor,) = (one for one in found if one["kind"] == "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    services = [
        one["spec"] for one in found if one["kind"] == "Service" and wanted <= one["metadata"]["labels"].items()
    ]
    component = "app.kubernetes.io/component"
    assert sorted(service["selector"][component] for service in services) == ["relay", "worker"]
    assert {service["ports"][0]["name"] for service in services} == {monitor["spec"]["endpoints"][0]["port"]}


def test_the_guide_shows_what_helm_says() -> None:
    page = MANIFESTS.parent.parent / "docs" / "deployment.md"
    ((_, shown),) = (block for block in code_blocks(page) if block[0] == "console")
    command, _, told = shown.partition("\n")
    words = command.removeprefix("$ helm ").split()
    done = run(tool("helm"), *words[:2], str(CHART), *words[3:], "--kube-version", KUBERNETES)
    assert done.stderr.strip() == told.strip()
