"""`verify products`: exactly the planted differences are found, and exactly those are repaired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.cli import Cli
from tests.integration.products.test_etl_command import STAGE, Site
from tests.support.postgres import new_database

LOG = "SELECT brand_code, sku, change_type FROM shop.product_change_log WHERE seq > 1 OR id > 40 ORDER BY 1, 2, seq"


@pytest.fixture(scope="module")
def loaded(kafka: str, postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Forty products, fed to a worker that has gone: the topic still has their rows."""
    url = new_database(postgres_server)
    site = Site(Cli(kafka, tmp_path_factory.mktemp("verify"), POSTGRES_URL=url), url)
    site.sql(STAGE)
    site.own_namespace()
    with site.cli.worker(STREAMS="streams.products"):
        assert site.etl("--feed-only")["created"] == "40"
    return site


@pytest.fixture
def site(loaded: Site, postgres_server: str, tmp_path: Path) -> Site:
    """A copy of it, for a test to spoil."""
    name = "v_" + loaded.url[-8:] + tmp_path.name[-12:].replace("-", "_")
    source = loaded.url.rpartition("/")[2]
    Site(loaded.cli, postgres_server).sql(f'CREATE DATABASE "{name}" TEMPLATE "{source}"')
    url = loaded.url.rpartition("/")[0] + "/" + name
    made = Site(Cli(loaded.cli.environment["MILLSTREAM_BOOTSTRAP_SERVERS"], tmp_path, POSTGRES_URL=url), url)
    made.cli.environment["MILLSTREAM_NAMESPACE"] = loaded.namespace
    return made


def verified(site: Site, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = site.cli.here("verify", "products", "--json", *arguments)
    assert done.exit_code in (0, 3), done.output
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return done.exit_code, {verdict["name"]: verdict for verdict in found}


def wrong(verdict: dict[str, Any]) -> dict[str, Any]:
    return {kind: verdict[kind] for kind in ("missing", "extra", "stale") if verdict[kind]}


def test_planted_differences_are_found_and_repaired_as_a_run_would(site: Site) -> None:  # PE-61, PE-62, T67, T75
    code, found = verified(site)
    assert (code, found["source"]["rows"], found["topic"]["rows"]) == (0, 40, 40)
    assert found["topic"]["notes"] == ["rows of the last run: 40, of these in the sink: 40"]
    site.sql("DELETE FROM shop.products WHERE (brand_code, sku) = ('B0', 's1')")
    site.sql("UPDATE shop.products SET data_version = 'x', name = 'y' WHERE (brand_code, sku) = ('B1', 's2')")
    site.sql("UPDATE shop.products SET description = 'z' WHERE (brand_code, sku) = ('B0', 's3')")
    site.sql("INSERT INTO shop.products (brand_code, sku, data_version) VALUES ('B0', 'planted', 'x')")
    code, found = verified(site)
    assert code == 3
    expected = {"missing": ['["B0", "s1"]'], "stale": ['["B0", "s3"]', '["B1", "s2"]']}
    assert wrong(found["source"]) == expected | {"extra": ['["B0", "planted"]']}
    assert wrong(found["topic"]) == expected
    before = dict(site.sql("SELECT id, xmin::text FROM shop.products"))
    code, found = verified(site, "--repair")
    assert (code, wrong(found["source"])) == (0, {})
    changed = [i for i, x in site.sql("SELECT id, xmin::text FROM shop.products") if before.get(i) != x]
    assert len(changed) == 3
    assert site.sql(LOG) == [("B0", "planted", "DELETE"), ("B0", "s1", "CREATE"), ("B1", "s2", "UPDATE")]
    again = site.cli.here("etl", "products", "--no-resume", "--dry-run").stdout.splitlines()
    assert {"would be created: 0", "would be updated: 0", "would be deleted: 0"} <= set(again)


def test_rows_that_the_next_run_brings_and_rows_that_no_run_can_bring_are_no_difference(site: Site) -> None:
    site.sql("UPDATE shop.products_staging SET commodity_name = 'new', src_updated_at = now() WHERE style_no = 's4'")
    site.sql("UPDATE shop.products_staging SET price = 1e9 WHERE style_no = 's5'")
    code, found = verified(site, "--no-topic")
    assert (code, found["source"]["waiting"]) == (0, 2)
    assert found["source"]["notes"] == ["not compared, rows that cannot become a product: 2"]
    site.sql("UPDATE shop.products_staging SET commodity_name = 'behind the watermark' WHERE style_no = 's6'")
    code, found = verified(site, "--no-topic")
    assert (code, wrong(found["source"])) == (3, {"stale": ['["B0", "s6"]', '["B1", "s6"]']})
    assert verified(site, "--no-topic", "--repair")[0] == 0
    assert site.sql("SELECT count(*) FROM shop.products WHERE name = 'behind the watermark'") == [(2,)]
    assert site.sql("SELECT count(*) FROM shop.products WHERE name = 'new'") == [(0,)]


def test_an_emptied_table_deletes_nothing_and_a_missing_one_is_named(site: Site) -> None:  # T74
    site.sql("DELETE FROM shop.products_staging")
    failed = site.cli.here("verify", "products", "--repair")
    assert (failed.exit_code, "would delete every product" in failed.stderr) == (1, True)
    assert site.sql("SELECT count(*) FROM shop.products") == [(40,)]
    assert "no table shop.nothing" in site.cli.here("verify", "products", "--table", "shop.nothing").stderr
