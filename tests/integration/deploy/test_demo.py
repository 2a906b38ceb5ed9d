"""The demo of docker-compose.yml, without containers: every command of ours, a real Prometheus, queries and alerts."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from millstream.postgres import connect
from tests.integration.deploy.containers import Containers
from tests.integration.deploy.prometheus import Prometheus
from tests.integration.deploy.services import PATIENCE, Services
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.postgres import new_database
from tests.support.waiting import wait_until
from tests.unit.deploy.test_alerts import rules
from tests.unit.deploy.test_dashboards import ALL

CREDENTIALS = "millstream:millstream-demo"
WORKERS = ("archive", "changefeeds", "relay")
QUICK = {
    "MILLSTREAM_SESSION_TIMEOUT": "6",
    "MILLSTREAM_HEARTBEAT_INTERVAL": "1",
    "MILLSTREAM_DISCOVERY_INTERVAL": "1",
    "DEMO_KEYS": "2000",
    "DEMO_INTERVAL": "2",
}
WITHOUT_DATA = {
    "Alerts 0",
    "Commits and failures 1",
    "Output, dead letters, replays 2",
    "Replays met by sinks 0",
    "Replays met by sinks 1",
    "Restored 0",
    "Sink errors and retries 0",
    "Sink errors and retries 1",
    "Watermark age 0",
}
"""Queries that have no answer while all is well, nothing is restored, and no ETL runs: panel and number."""


OF_A_SLOW_MACHINE = {
    "MillstreamEventLoopBlocked",
    "MillstreamOutboxPublishLatency",
    "MillstreamOutboxRetries",
    "MillstreamProjectionLatency",
}


class Demo(NamedTuple):
    services: Services
    prometheus: Prometheus
    home: Path
    postgres: str


@pytest.fixture(scope="module")
def demo(kafka: str, postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    home, database = (
        tmp_path_factory.mktemp(f"demo-{secrets.token_hex(4)}"),
        new_database(postgres_server, migrated=False),
    )
    settings = QUICK | {"MILLSTREAM_NAMESPACE": f"{home.name}."}
    image = os.environ.get("MILLSTREAM_TEST_IMAGE", "")
    kind = type("Image", (Containers,), {"image": image}) if image else Services
    with (
        ClickHouseServer(home / "clickhouse", CREDENTIALS) as clickhouse,
        kind(home, kafka, database, clickhouse.port, **settings) as services,
    ):
        services.run("migrate")
        for name in WORKERS:
            services.start(name)
        services.until_healthy(*WORKERS)
        with Prometheus(home / "prometheus", services.ports) as prometheus:
            for name in ("feeder", "shop"):
                services.start(name)
            services.until_healthy("feeder", "shop")
            yield Demo(services, prometheus, home, database)


def test_every_service_does_what_it_is_for(demo: Demo) -> None:  # DF-62, DF-75
    at = demo.prometheus
    wait_until(lambda: at.value("sum(millstream_batches_published_total)") >= 1, PATIENCE, "a batch", every=0.5)
    wait_until(
        lambda: at.value('sum(millstream_projection_events_total{operation="applied"})') >= 50,
        PATIENCE, "events in the projection", every=0.5,
    )  # fmt: skip
    published = {path.parent for path in demo.services.volume("dumps").glob("demo/2*/*.parquet")}
    assert published
    assert all(len(list(batch.iterdir())) == 3 for batch in published)
    assert at.value("sum(millstream_sink_rows_total{sink=~'.*[Cc]lick.*'})") >= 6_000


async def test_the_projection_has_the_videos_of_the_shop(demo: Demo) -> None:
    async with connect(demo.postgres) as connection:
        assert await connection.fetchval("SELECT count(*) FROM catalog.video_projection") >= 10


def test_every_query_is_answered_and_the_dashboards_are_populated(demo: Demo) -> None:  # DF-74, DF-75
    asked = {(at, n): expr for at, panel in ALL.items() for n, expr in enumerate(queries(panel))}

    def empty() -> set[str]:
        found = {(at, n) for (at, n), expr in asked.items() if not demo.prometheus.query(expr)}
        return {f"{at}: {n}" for at, n in found if f"{ALL[at]['title']} {n}" not in WITHOUT_DATA}

    seen = empty()
    deadline = time.monotonic() + PATIENCE
    while seen and time.monotonic() < deadline:
        seen &= empty()  # once there is enough
        time.sleep(1)
    assert sorted(seen) == []


def queries(panel: dict[str, Any]) -> list[str]:
    """What Grafana would ask, with its variables at `All`."""
    filled = {"$__rate_interval": "30s", "$__range": "5m", "$job": ".*", "$worker": ".*"}
    found = [target["expr"] for target in panel["targets"]]
    for name, value in filled.items():
        found = [expr.replace(name, value) for expr in found]
    return found


def test_the_choices_at_the_top_are_filled(demo: Demo) -> None:
    found = demo.prometheus.ask("series", **{"match[]": "millstream_build_info"})
    assert {series["job"] for series in found} == {"millstream"}
    assert {series["service"] for series in found} == set(WORKERS)


def test_no_alert_fires_while_all_is_well(demo: Demo) -> None:
    groups = demo.prometheus.ask("rules", type="alert")["groups"]
    found = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert found.keys() == rules().keys()
    assert {name: rule["lastError"] for name, rule in found.items() if rule["health"] != "ok"} == {}
    firing = {name: rule["alerts"] for name, rule in found.items() if rule["state"] == "firing"}
    assert {name: alerts for name, alerts in firing.items() if name not in OF_A_SLOW_MACHINE} == {}
