"""A MillstreamWorker's spec: what is taken from it, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest

from millstream.operator.objects import must_replace, objects
from millstream.operator.spec import InvalidSpecError, parse, quantity, variables
from tests.unit.kube.chart import DEPLOY, load
from tests.unit.kube.workers import worker


def test_the_example_is_understood() -> None:  # DF-67
    spec = parse(worker())
    assert (spec.name, spec.replicas, spec.secret, spec.grace) == ("dumps", 2, "millstream-urls", 90)
    assert spec.settings == {
        "MILLSTREAM_BOOTSTRAP_SERVERS": "kafka:9092",
        "MILLSTREAM_LOG_FORMAT": "json",
        "MILLSTREAM_STREAMS": "streams.archive,streams.batches",
        "MILLSTREAM_TOPIC_REPLICATION_FACTOR": "3",
    }


def test_settings_become_variables_as_the_settings_class_reads_them() -> None:
    given = {"exactly_once": False, "outbox_topics": {"a": "x", "b": "y"}, "chunk_max_rows": 1000000, "namespace": ""}
    assert variables(given | {"sink_retry_timeout": None}) == {
        "MILLSTREAM_CHUNK_MAX_ROWS": "1000000",
        "MILLSTREAM_EXACTLY_ONCE": "false",
        "MILLSTREAM_OUTBOX_TOPICS": "a=x,b=y",
    }


KAFKA = {"bootstrap_servers": "kafka:9092"}


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"image": None}, "spec.image: required"),
        ({"replicas": -1}, "spec.replicas = -1: must be a number, 0 or more"),
        ({"settings": {}}, "spec.settings.bootstrap_servers: required"),
        ({"settings": KAFKA | {"chunk_max_row": 5}}, "chunk_max_row: unknown setting; did you mean chunk_max_rows?"),
        ({"settings": KAFKA | {"chunk_max_rows": 0}}, "MILLSTREAM_CHUNK_MAX_ROWS = 0: input should be greater"),
        ({"settings": {"bootstrap_servers": "kafka"}}, "must be host:port"),
        ({"settings": KAFKA | {"web_port": 80}}, "spec.settings.web_port: is set by the operator"),
        (
            {"settings": KAFKA | {"clickhouse_url": "http://u:secret@h:1?database=d"}},
            "put MILLSTREAM_CLICKHOUSE_URL into a Secret and name it in spec.secretName",
        ),
        (
            {"settings": KAFKA | {"security_protocol": "SASL_SSL", "sasl_password": "secret@"}},
            "put MILLSTREAM_SASL_PASSWORD into a Secret and name it in spec.secretName",
        ),
        (
            {"settings": KAFKA | {"security_protocol": "sasl_ssl"}, "secretName": None},
            "spec.secretName: required with settings.security_protocol = SASL_…, a Secret with MILLSTREAM_SASL_PASS",
        ),
        (
            {"settings": KAFKA | {"security_protocol": "SASL_SSL", "sasl_username": "me"}},
            "spec.settings: MILLSTREAM_SECURITY_PROTOCOL = SASL_SSL: needs MILLSTREAM_SASL_MECHANISM",
        ),
        ({"parquetClaim": "dumps", "replicas": 2}, "with spec.parquetClaim there can be one worker"),
        ({"storage": {"size": "ten"}}, "spec.storage.size = 'ten': must be a quantity"),
        ({"terminationGracePeriodSeconds": 70}, "must be above 70, within which a worker ends by itself"),
        (
            {"settings": KAFKA | {"shutdown_timeout": 60}, "terminationGracePeriodSeconds": 120},
            "must be above 130",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_the_field_is_named(over: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidSpecError) as refused:
        parse(worker(**over))
    assert told in str(refused.value)
    assert "secret@" not in str(refused.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidSpecError) as refused:
        parse(worker(image="", replicas="two", storage={"size": ""}) | {"metadata": {"name": "Dumps.A"}})
    assert [line.partition(":")[0].partition(" =")[0] for line in str(refused.value).splitlines()] == [
        "metadata.name",
        "spec.image",
        "spec.replicas",
        "spec.storage.size",
    ]


def test_a_pod_has_longer_to_stop_than_the_worker_takes() -> None:
    assert parse(worker(settings=KAFKA | {"shutdown_timeout": 60})).grace == 150


def test_everything_is_owned_by_the_worker_and_named_after_it() -> None:
    made = objects(parse(worker()))
    assert [(one["kind"], one["metadata"]["name"]) for one in made] == [
        ("Service", "dumps-workers"),
        ("PodDisruptionBudget", "dumps"),
        ("StatefulSet", "dumps"),
    ]
    for one in made:
        (owner,) = one["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("MillstreamWorker", "uid-1", True)


def test_without_storage_tables_are_in_the_pod_and_the_parquet_claim_is_mounted() -> None:
    made = objects(parse(worker(storage=None, parquetClaim="results", replicas=1)))[-1]["spec"]
    assert "volumeClaimTemplates" not in made
    volumes = {volume["name"]: volume for volume in made["template"]["spec"]["volumes"]}
    assert volumes["data"] == {"name": "data", "emptyDir": {}}
    assert volumes["parquet"]["persistentVolumeClaim"] == {"claimName": "results"}
    env = {v["name"]: v.get("value") for v in made["template"]["spec"]["containers"][0]["env"]}
    assert env["MILLSTREAM_PARQUET_DIR"] == "/parquet"


def test_certificates_are_mounted_and_the_password_is_left_to_the_secret() -> None:
    secured = {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_username": "me",
        "ssl_ca_location": "/certificates/kafka.ca/ca.crt",  # no file of the operator's own
    }
    spec = parse(worker(settings=KAFKA | secured, certificateSecrets=["kafka.ca"]))
    assert "MILLSTREAM_SASL_PASSWORD" not in spec.settings
    pod = objects(spec)[-1]["spec"]["template"]["spec"]
    assert {"name": "certificates-0", "secret": {"secretName": "kafka.ca", "defaultMode": 288}} in pod["volumes"]
    (container,) = pod["containers"]
    mount = {"name": "certificates-0", "mountPath": "/certificates/kafka.ca", "readOnly": True}
    assert mount in container["volumeMounts"]
    assert container["envFrom"] == [{"secretRef": {"name": "millstream-urls"}}]


def stateful_set(**spec: Any) -> dict[str, Any]:
    return objects(parse(worker(**spec)))[-1]


@pytest.mark.parametrize(
    ("over", "fields"),
    [
        ({}, []),
        ({"replicas": 5, "image": "millstream:2", "settings": KAFKA}, []),
        ({"storage": {"size": "10240Mi"}}, []),
        ({"storage": {"size": "20Gi"}}, ["volumeClaimTemplates"]),
        ({"storage": None}, ["volumeClaimTemplates"]),
    ],
)
def test_what_a_stateful_set_cannot_change_is_told_from_what_it_can(over: dict[str, Any], fields: list[str]) -> None:
    assert must_replace(stateful_set(), stateful_set(**over)) == fields


def test_a_stateful_set_of_another_shape_is_made_anew() -> None:
    old = stateful_set()
    old["spec"] |= {"serviceName": "dumps", "podManagementPolicy": "OrderedReady"}
    assert must_replace(old, stateful_set()) == ["serviceName", "podManagementPolicy"]
    assert must_replace(stateful_set(storage=None), stateful_set()) == ["volumeClaimTemplates"]


@pytest.mark.parametrize(
    ("storage", "told"),
    [
        ({"size": "5Gi"}, "spec.storage.size = 5Gi: volumes cannot shrink; it was 10Gi"),
        ({"size": "10Gi", "storageClassName": "fast"}, "volumes stay in their class, the default one"),
    ],
)
def test_what_volumes_cannot_do_is_refused(storage: dict[str, str], told: str) -> None:
    with pytest.raises(InvalidSpecError, match=told):
        must_replace(stateful_set(), stateful_set(storage=storage))


def test_quantities_are_compared_as_numbers() -> None:
    assert quantity("1Gi") == quantity("1024Mi") == 2**30
    assert quantity("1G") == 10**9
    assert quantity("1500m") == quantity("1.5")
    with pytest.raises(InvalidSpecError):
        quantity("1 GB")


def test_the_crd_knows_the_fields_that_are_read_and_no_others() -> None:
    (version,) = load(DEPLOY / "operator" / "crd.yaml")["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]
    assert set(schema["spec"]["properties"]) == {
        *("image", "imagePullPolicy", "imagePullSecrets", "replicas", "command", "settings", "secretName", "storage"),
        *(
            "certificateSecrets",
            "parquetClaim",
            "terminationGracePeriodSeconds",
            "resources",
            "nodeSelector",
            "tolerations",
        ),
    }
    assert version["subresources"]["scale"]["specReplicasPath"] == ".spec.replicas"
    columns = {column["name"]: column["jsonPath"] for column in version["additionalPrinterColumns"]}
    assert {columns[name] for name in ("Phase", "Ready", "Last Error")} == {
        *(".status.phase", ".status.readyReplicas", ".status.lastError")
    }
