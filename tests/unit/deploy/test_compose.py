"""docker-compose.yml, as `docker compose config` itself reads it. What its services do: tests/integration/deploy."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from millstream.settings import PREFIX, Settings
from tests.integration.deploy.services import compose
from tests.unit.deploy.dockerfile import ROOT, environment

FILE = compose()
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
ENDS = {"migrate"}


def test_it_has_the_whole_demo() -> None:  # DF-62
    servers = {"kafka", "clickhouse", "postgres", "prometheus", "grafana"}
    assert SERVICES.keys() == servers | {"archive", "changefeeds", "relay", "migrate", "feeder", "shop"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_local_healthy_and_waits_for_what_it_needs(name: str) -> None:
    service = SERVICES[name]
    if name not in OURS:
        assert re.fullmatch(r"[\w./-]+:v?\d+(\.\d+)+", service["image"]), "a version that does not move"
        assert service["healthcheck"]["test"]
    assert {port["host_ip"] for port in service.get("ports", [])} <= {"127.0.0.1"}
    assert service["restart"] == ("on-failure" if name in ENDS else "unless-stopped")
    for other, how in service.get("depends_on", {}).items():
        assert how["condition"] == ("service_completed_successfully" if other in ENDS else "service_healthy")
    for volume in service.get("volumes", []):
        if volume["type"] == "bind":
            assert volume["read_only"]
            assert (ROOT / volume["source"]).exists(), volume["source"]
        else:
            assert volume["source"] in FILE["volumes"]


@pytest.mark.parametrize("name", OURS)
def test_a_service_of_ours_cannot_write_to_its_image_and_has_no_privileges(name: str) -> None:
    service = OURS[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"]
    given = environment() | service["environment"]
    settings = {key.removeprefix(PREFIX).lower(): value for key, value in given.items() if key.startswith(PREFIX)}
    Settings(**settings)
    mounted = [volume["target"] for volume in service.get("volumes", [])] + service["tmpfs"]
    if "command" not in service:  # a worker
        written = [settings["data_dir"], *filter(None, [settings.get("parquet_dir")])]
        assert all(any(path == at or path.startswith(f"{at}/") for at in mounted) for path in written)


def test_the_only_secret_is_one_that_can_be_chosen() -> None:
    text = (ROOT / "docker-compose.yml").read_text("utf-8")
    given = re.findall(r"PASSWORD: (.+)|://\w+:([^\s@]+)@", text)
    assert {"".join(one) for one in given} == {"${DEMO_PASSWORD:-millstream-demo}"}


def test_prometheus_looks_at_every_service_that_has_metrics() -> None:
    configuration = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text("utf-8"))
    (job,) = (job for job in configuration["scrape_configs"] if job["job_name"] == "millstream")
    (discovery,) = job["dns_sd_configs"]
    published = {name for name, s in OURS.items() if any(p["target"] == 6066 for p in s.get("ports", []))}
    assert set(discovery["names"]) == published
    assert discovery["port"] == 6066
