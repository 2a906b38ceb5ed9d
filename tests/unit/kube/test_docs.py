"""docs/deployment.md: files, values, resources and the systemd unit are what they are said to be."""

from __future__ import annotations

import re
import shlex
from configparser import ConfigParser
from typing import Any

import pytest
import yaml

from millstream.operator.spec import parse
from millstream.settings import PREFIX, Settings
from tests.unit.docs.documents import ROOT, code_blocks
from tests.unit.kube.chart import DEPLOY, defaults
from tests.unit.kube.test_values import problems

PAGE = ROOT / "docs" / "deployment.md"
UNIT = DEPLOY / "systemd" / "millstream-worker@.service"


def lines() -> list[list[str]]:
    """Commands as words."""
    text = "\n".join(text for language, text in code_blocks(PAGE) if language == "sh")
    return [shlex.split(line) for line in text.splitlines() if line]


def blocks() -> list[dict[str, Any]]:
    return [yaml.safe_load(text) for language, text in code_blocks(PAGE) if language == "yaml"]


def test_every_file_that_a_command_names_is_there() -> None:
    named = {word for words in lines() for word in words if re.match(r"deploy/", word)}
    assert {"deploy/helm/millstream", "deploy/manifests/archive.yaml", "deploy/operator/crd.yaml"} <= named
    assert [word for word in named if not (ROOT / word).exists()] == []


def test_the_values_of_the_guide_are_values_and_the_resource_is_valid() -> None:  # DF-69
    values, secured = (block for block in blocks() if "kind" not in block)
    assert problems(values) == problems(secured) == []
    assert Settings(**values["settings"]).topic_replication_factor == 3
    assert Settings(**secured["settings"], sasl_password="from the Secret").uses_tls
    (worker,) = (block for block in blocks() if block.get("kind") == "MillstreamWorker")
    worker["metadata"] |= {"namespace": "dumps", "uid": "u"}
    assert parse(worker).replicas == 2


def test_every_value_that_the_guide_speaks_of_is_one() -> None:
    page = PAGE.read_text("utf-8").partition("## Kubernetes with Helm")[2].partition("## Plain manifests")[0]
    for path in re.findall(r"`([a-z]\w+\.[a-z]\w+)`", page):
        head, tail = path.split(".")
        if head in defaults() and head != "settings":
            assert tail in defaults()[head], path


@pytest.mark.parametrize("text", [UNIT.read_text("utf-8"), (DEPLOY / "systemd" / "worker.env").read_text("utf-8")])
def test_every_variable_of_the_unit_is_a_setting(text: str) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert {*re.findall(rf"{PREFIX}[A-Z_]+(?==)", text)} <= known


def test_the_example_environment_is_a_valid_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for line in (DEPLOY / "systemd" / "worker.env").read_text("utf-8").splitlines():
        if line.removeprefix("#").startswith(PREFIX):
            monkeypatch.setenv(*line.removeprefix("#").split("=", 1))
    assert Settings().clickhouse_url is not None


def test_the_unit_stops_workers_as_they_need_it_and_starts_them_again() -> None:
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text("utf-8"))
    service = unit["Service"]
    bound = 2 * Settings.model_fields["shutdown_timeout"].default + 10
    assert float(service["TimeoutStopSec"]) > bound
    assert (service["Restart"], service["RestartPreventExitStatus"], service["KillMode"]) == ("always", "1 2", "mixed")
    assert service["ExecStart"].split()[1:] == ["-A", "streams", "worker"]
    assert "MILLSTREAM_WORKER_SLOT=%l-%i MILLSTREAM_WEB_PORT=%i" in UNIT.read_text("utf-8")
