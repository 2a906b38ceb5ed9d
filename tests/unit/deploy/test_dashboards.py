"""Grafana dashboards: what they ask exists, the committed files are what the generator gives, and all of it fits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from millstream import metrics
from tests.unit.deploy.dockerfile import ROOT
from tests.unit.deploy.promql import counters_without_rate, labels_of, plain, problems, selectors
from tests.unit.deploy.test_alerts import rules
from tools.dashboards import DASHBOARDS, DIRECTORY, files
from tools.dashboards.grafana import COLUMNS

GRAFANA = ROOT / "deploy" / "grafana"
NOT_SCRAPED = {"FED_RECORDS", "FED_BYTES"}
"""Of feeders, which are commands without an endpoint."""


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


ALL = {f"{d.uid}: {p['title']} {p['id']}": p for d in DASHBOARDS for p in panels(d.json()) if p["type"] != "row"}


def test_the_committed_files_are_what_the_generator_gives() -> None:
    assert {path: path.read_text("utf-8") for path in DIRECTORY.glob("*")} == files(), "run `make dashboards`"


@pytest.mark.parametrize("at", ALL)
def test_a_panel_asks_for_what_is_declared_and_says_what_it_shows(at: str) -> None:  # RO-65, DF-73
    panel = ALL[at]
    assert panel["description"].endswith(".")
    for target in panel["targets"]:
        expr = plain(target["expr"])
        assert "$" not in expr
        assert problems(expr) == []
        assert counters_without_rate(expr) == []
        named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert named <= labels_of(expr), "the legend names a label that the answer does not have"


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.uid)
def test_panels_do_not_lie_on_one_another_and_variables_are_declared(dashboard: Any) -> None:
    found = dashboard.json()
    taken: set[tuple[int, int]] = set()
    for panel in panels(found):
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= COLUMNS
        taken |= cells
    ids = [panel["id"] for panel in panels(found)]
    assert len(ids) == len(set(ids))
    declared = {variable["name"] for variable in found["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\b", json.dumps(found["panels"])))
    assert used <= declared
    assert {link["url"].removeprefix("/d/") for link in found["links"]} <= {d.uid for d in DASHBOARDS}


def test_a_description_names_only_alerts_that_there_are() -> None:
    named = {name for panel in ALL.values() for name in re.findall(r"Millstream[A-Z]\w+", panel["description"])}
    assert named <= rules().keys()
    assert named


def test_every_metric_of_a_worker_is_on_a_dashboard() -> None:
    shown = {name for panel in ALL.values() for t in panel["targets"] for name, _ in selectors(plain(t["expr"]))}
    missing = {
        constant
        for constant, metric in metrics.declared().items()
        if not any(re.fullmatch(rf"{metric._name}(_total|_info|_bucket|_count)?", name) for name in shown)
    }
    assert missing == NOT_SCRAPED


def test_what_is_provisioned_is_what_compose_mounts() -> None:  # DF-75
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    grafana = services["grafana"]
    mounts = dict(volume.removesuffix(":ro").split(":") for volume in grafana["volumes"])
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/millstream.yml").read_text("utf-8"))["providers"]
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text("utf-8"))["datasources"]
    assert source["url"].removeprefix("$") in grafana["environment"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DIRECTORY / home.rpartition("/")[2]).exists()
