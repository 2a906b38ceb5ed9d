"""Alert rules: what they ask exists, each fires once and is silent once, each has a section in the runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.unit.deploy.dockerfile import ROOT
from tests.unit.deploy.promql import counters_without_rate, problems
from tests.unit.docs.documents import anchors, headings

PROMETHEUS = ROOT / "deploy" / "prometheus"
RUNBOOK = ROOT / "docs" / "runbook.md"
PARTS = ["Meaning", "Impact", "Look", "Do"]
WANTED = {  # RO-69, RO-95
    "MillstreamOutboxBacklog": "> 1000",
    "MillstreamOutboxPublishErrors": "> 0.1",
    "MillstreamOutboxPublishLatency": "> 30",
    "MillstreamOutboxRetries": "> 0",
    "MillstreamOutboxBackoffCeiling": "> 6",
    "MillstreamSubscriptionBacklog": "> 1000",
    "MillstreamSubscriptionOldest": "> 300",
    "MillstreamProjectionErrors": "* 60 > 10",
    "MillstreamProjectionLatency": "> 60",
    "MillstreamProjectionVersionLag": "> 10",
    "MillstreamDeadLetters": "> 10",
}
FIVE_MINUTES = {"MillstreamOutboxBacklog", "MillstreamOutboxPublishErrors", "MillstreamSubscriptionBacklog"}


def rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text("utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


@pytest.mark.parametrize("name", rules())
def test_an_alert_asks_for_what_there_is_and_says_what_to_do(name: str) -> None:
    rule = rules()[name]
    assert problems(rule["expr"]) == []
    assert counters_without_rate(rule["expr"]) == []
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page == "docs/runbook.md"
    assert anchor in anchors(RUNBOOK)


def test_the_thresholds_are_those_of_the_source_systems() -> None:  # RO-69, RO-95
    found = rules()
    assert {name: found[name]["expr"].strip()[-len(end) :] for name, end in WANTED.items()} == WANTED
    assert {name for name in WANTED if found[name].get("for") == "5m"} == FIVE_MINUTES
    assert found["MillstreamDeadLetters"]["for"] == "1m"
    critical = {"MillstreamOutboxPublishErrors", "MillstreamDeadLetters"}
    assert {found[name]["labels"]["severity"] for name in critical} == {"critical"}


def test_the_runbook_has_a_section_of_four_parts_for_each_alert_and_no_other() -> None:
    named = [text for _, text in headings(RUNBOOK) if text.startswith("Millstream")]
    assert sorted(named) == sorted(rules())
    for section in re.split(r"^### ", RUNBOOK.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        assert re.findall(r"^\*\*(\w+)\.\*\*", section, re.MULTILINE) == PARTS, section.splitlines()[0]


def test_every_alert_is_silent_once_and_fires_once() -> None:
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text("utf-8"))["tests"]
    shown = {(t["alertname"], bool(t["exp_alerts"])) for test in tests for t in test["alert_rule_test"]}
    assert shown == {(name, fires) for name in rules() for fires in (True, False)}
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")


def test_prometheus_takes_the_configuration_of_the_demo() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "config", "prometheus.yml")


def promtool(*arguments: str) -> str:
    program = shutil.which("promtool")
    assert program, "promtool is missing: apt-get install prometheus (Debian), brew install prometheus"
    done = subprocess.run([program, *arguments], cwd=PROMETHEUS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
