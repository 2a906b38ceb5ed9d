"""The chart's values: each is in the schema, described, used; what does not exist is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from millstream.errors import ConfigError
from millstream.settings import Settings
from tests.unit.kube.chart import CHART, CI, SCHEMA, defaults, generated, load, merged

SCHEMA_TEXT = json.loads(SCHEMA.read_text("utf-8"))
VALIDATOR = jsonschema.Draft7Validator(SCHEMA_TEXT)
OPEN = {"global", "podSecurityContext", "securityContext", "affinity"}
"""Objects of Kubernetes, which the API server checks."""


def problems(over: dict[str, Any]) -> list[str]:
    """What the schema says against values laid over the defaults. Helm leaves out values that are null."""
    values = {k: v for k, v in merged(defaults(), over).items() if v is not None}
    return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in VALIDATOR.iter_errors(values)]


@pytest.mark.parametrize("name", [None, *CI])
def test_the_defaults_and_every_example_are_valid(name: str | None) -> None:  # DF-68
    VALIDATOR.check_schema(SCHEMA_TEXT)
    assert problems(load(CI[name]) if name else {}) == []


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"replicas": 3}, "'replicas' was unexpected"),
        ({"settings": {"chunk_max_row": 5}}, "'chunk_max_row' was unexpected"),
        ({"settings": {"web_port": 80}}, "'web_port' was unexpected"),
        ({"settings": {"clickhouse_url": "http://u:p@h:1?database=d"}}, "'clickhouse_url' was unexpected"),
        ({"settings": {"sasl_password": "x"}}, "'sasl_password' was unexpected"),
        ({"settings": {"security_protocol": "TLS"}}, "settings.security_protocol: 'TLS' is not one of"),
        ({"certificateSecrets": "kafka-ca"}, "certificateSecrets: 'kafka-ca' is not of type 'array'"),
        ({"secrets": {"password": "x"}}, "'password' was unexpected"),
        ({"persistence": {"class": "fast"}}, "'class' was unexpected"),
        ({"probes": {"liveness": {"path": "/"}}}, "'path' was unexpected"),
        ({"settings": {"chunk_max_rows": 0}}, "settings.chunk_max_rows: 0 is less than the minimum of 1"),
        ({"settings": {"log_format": "xml"}}, "settings.log_format: 'xml' is not one of"),
        ({"web": {"port": 70000}}, "web.port: 70000 is greater than the maximum"),
        ({"persistence": {"size": "10 GB"}}, "persistence.size: '10 GB' does not match"),
        ({"autoscaling": {"minReplicas": 0}}, "autoscaling.minReplicas: 0 is less than the minimum of 1"),
    ],
)
def test_a_value_that_does_not_exist_or_cannot_be_is_refused_by_name(over: dict[str, Any], told: str) -> None:
    assert any(told in problem for problem in problems(over)), problems(over)


def test_kafka_must_be_named() -> None:
    values = {k: v for k, v in defaults().items() if v is not None}
    del values["settings"]["bootstrap_servers"]
    assert [e.message for e in VALIDATOR.iter_errors(values)] == ["'bootstrap_servers' is a required property"]


def test_no_object_of_the_schema_takes_unknown_names() -> None:
    def closed(schema: dict[str, Any], name: str) -> Iterator[str]:
        if schema.get("type") == "object" and name not in OPEN and "additionalProperties" not in schema:
            yield name
        for child, inner in schema.get("properties", {}).items():
            yield from closed(inner, child)

    found = list(closed(SCHEMA_TEXT, "values"))
    for name, schema in SCHEMA_TEXT["$defs"].items():
        found += closed(schema, name)
    assert set(found) <= {"requests", "limits"}


def test_the_settings_in_the_schema_are_those_of_the_class() -> None:
    made = "run: python -m tests.unit.docs.settings_table"
    assert {name: SCHEMA_TEXT["$defs"][name] for name in generated()} == generated(), made


@pytest.mark.parametrize("name", [None, *CI])
def test_the_settings_of_every_example_are_understood_by_millstream(name: str | None) -> None:
    values = merged(defaults(), load(CI[name]) if name else {})
    assert Settings(**values["settings"]).bootstrap_servers


def test_every_value_has_a_schema_and_a_use_and_all_that_is_used_is_a_value() -> None:
    known = SCHEMA_TEXT["properties"]
    assert set(defaults()) == set(known) - {"global"}
    for name, value in defaults().items():
        if "properties" in known[name]:
            assert set(value) == set(known[name]["properties"]), name
    templates = "".join(path.read_text("utf-8") for path in (CHART / "templates").rglob("*.*"))
    used = {tuple(found.split(".")) for found in re.findall(r"\.Values\.([\w.]+)", templates)}
    assert {path[0] for path in used} == set(defaults())
    for path in used - {("settings",), ("secrets",)}:
        here: Any = merged(defaults(), {"settings": dict.fromkeys(Settings.model_fields), "secrets": {}})
        for part in path:
            assert part in here, path
            here = here[part]


def test_every_value_is_described() -> None:
    text = (CHART / "values.yaml").read_text("utf-8")
    lines = text.splitlines()
    assert lines[0].startswith("# ")
    for number, line in enumerate(lines):
        if re.match(r"[a-z]\w+:", line) and lines[number - 1].strip() == "":
            raise AssertionError(f"{line!r} has no comment")


def test_a_service_named_millstream_would_stop_workers_by_the_variables_it_leads_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Why every pod says enableServiceLinks: false (test_manifests)."""
    monkeypatch.setenv("MILLSTREAM_METRICS_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(ConfigError, match="MILLSTREAM_METRICS_SERVICE_HOST: unknown variable"):
        Settings()
