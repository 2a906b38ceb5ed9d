"""`millstream etl` from the outside: a real Kafka, a real Postgres, a worker of the command's own."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from millstream.postgres import connect
from millstream.settings import Settings
from schemas.products.codec import key_of
from streams.cli.products import ProductsRun
from tests.acceptance.cli import Cli
from tests.support.kafka import read_all
from tests.support.waiting import wait_until

STAGE = """
INSERT INTO shop.products_staging
SELECT 'B' || i % 2, 's' || i / 2, 'name ' || i, i, 'red||blue', '["b", "a"]', '{"size": "38||37"}', 'd', 'u', true,
       '2026-01-01T00:00:00Z'
  FROM generate_series(1, 40) i
"""
KEYS = "SELECT brand_code, sku FROM shop.products"
STATE = """
SELECT (SELECT count(*) FROM shop.products) AS products, (SELECT count(*) FROM shop.product_change_log) AS changes,
       (SELECT count(*) FROM millstream.positions) AS positions
"""


class Site:
    """A database and the program."""

    def __init__(self, cli: Cli, url: str) -> None:
        self.cli, self.url, self.namespace = cli, url, url[-6:] + "."
        run = ProductsRun(Settings(postgres_url=url), "", 1, None, True, True, False)
        self.private = run.prefix
        """How the topics of its runs begin; other tests' may stand in the same broker."""

    def own_namespace(self) -> None:
        """Topics with fixed names are this test's own from now on."""
        self.cli.environment["MILLSTREAM_NAMESPACE"] = self.namespace

    def sql(self, text: str) -> list[tuple[Any, ...]]:
        async def run() -> list[tuple[Any, ...]]:
            async with connect(self.url) as connection:
                return [tuple(row) for row in await connection.fetch(text)]

        return asyncio.run(run())

    def etl(self, *arguments: str, **settings: str) -> dict[str, str]:
        """What the command says."""
        lines = self.cli.ok("etl", "products", *arguments, **settings).splitlines()
        return dict(line.split(": ", 1) for line in lines)


@pytest.fixture
def site(kafka: str, postgres: str, tmp_path: Path) -> Site:
    return Site(Cli(kafka, tmp_path, POSTGRES_URL=postgres), postgres)


def ours(site: Site, admin: AdminClient) -> set[str]:
    return {name for name in admin.list_topics(timeout=30).topics if name.startswith(site.private)}


def clean_up(site: Site, admin: AdminClient) -> None:
    if left := list(ours(site, admin)):
        admin.delete_topics(left)


def test_what_is_staged_becomes_products_and_a_second_run_changes_nothing(site: Site, admin: AdminClient) -> None:
    site.sql(STAGE)  # T61, T67, T70, T71, PE-68
    dry = site.etl("--dry-run", "--limit", "7", BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert (dry["would be created"], site.sql(STATE)) == ("40", [(0, 0, 0)])
    assert site.sql("SELECT * FROM shop.etl_watermark") == []
    first = site.etl("--limit", "7")
    assert (first["rows fed"], first["created"]) == ("40", "40")
    assert "2026-01-01T00:00:00" in first["watermark"]
    assert site.sql(STATE) == [(40, 40, 0)]
    wait_until(lambda: not ours(site, admin), 30, "the run's topics to be gone")
    for arguments in ((), ("--no-resume",)):
        again = site.etl("--limit", "7", *arguments)
        assert (again["rows fed"], again["created"], again["updated"]) == ("40", "0", "0")
    assert site.sql(STATE) == [(40, 40, 0)]


def test_bad_rows_stop_before_their_batch_or_are_put_aside(site: Site, admin: AdminClient, kafka: str) -> None:  # T64
    site.sql(STAGE)
    site.sql("UPDATE shop.products_staging SET price = 1e9 WHERE style_no = 's9' AND style_brand_no = 'B0'")
    stopped = site.cli("etl", "products", "--limit", "10")
    assert stopped.returncode == 1
    assert "style_brand_no='B0', style_no='s9', field price" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    landed = site.sql(STATE)[0][0]
    assert landed % 10 == 0
    assert landed < 40
    done = site.etl("--limit", "10", "--on-error", "dlq", "--detect-deletes")
    assert done["put aside"].startswith("1, in topic ")
    topic = done["put aside"].rpartition(" ")[2]
    assert topic.startswith(site.private)
    assert [record.key() for record in read_all(kafka, topic)] == [b'["B0","s9"]']
    assert site.sql(STATE)[0][:2] == (39, 39)
    site.sql("DELETE FROM shop.products_staging WHERE style_no = 's1'")  # T74
    assert site.etl("--detect-deletes", "--on-error", "dlq")["deleted"] == "2"
    clean_up(site, admin)


def test_a_run_that_is_killed_anywhere_is_made_good_by_the_next_one(site: Site, kafka: str, admin: AdminClient) -> None:
    site.sql(STAGE)  # T65, T72
    for point, code in (("etl.sent", -9), ("etl.committed", -9), ("etl.written", 1)):
        killed = site.cli("etl", "products", "--limit", "7", FAILPOINTS=f"{point}=kill")
        assert killed.returncode == code, killed.stderr
        assert "Traceback" not in killed.stderr
    assert site.etl("--limit", "7")["rows fed"] == "40"
    assert site.sql(STATE) == [(40, 40, 0)]
    assert site.sql("SELECT count(*) FROM shop.product_change_log WHERE seq > 1") == [(0,)]
    clean_up(site, admin)
    site.own_namespace()
    assert site.cli("etl", "changes", FAILPOINTS="etl.changes.published=kill").returncode == -9
    assert site.cli.ok("etl", "changes") == "published: 40\n"
    records = read_all(kafka, site.namespace + "products.changes")
    assert {record.key() for record in records} == {key_of(*pair) for pair in site.sql(KEYS)}


def test_workers_that_run_take_what_is_only_fed(site: Site, kafka: str) -> None:
    site.sql(STAGE)
    site.own_namespace()
    with site.cli.worker(STREAMS="streams.products"):
        assert site.etl("--feed-only", "--max-rows", "15")["created"] == "15"
        traced = site.cli.ok("etl", "products", "--feed-only", TRACES="console")
        assert "created: 25" in traced.splitlines()
        other = site.cli("etl", "products", "--table", "shop.nothing")
        assert (other.returncode, "no table shop.nothing" in other.stderr) == (1, True)
    assert site.sql("SELECT count(*) FROM shop.products") == [(40,)]
    (span,) = (json.loads(line) for line in traced.splitlines() if '"etl feed"' in line)
    records = read_all(kafka, span["attributes"]["messaging.destination.name"])
    told = Counter(dict(record.headers() or []).get("traceparent", b"")[3:52].decode() for record in records)
    ours = "-".join(span["context"][name][2:] for name in ("trace_id", "span_id"))
    assert told == {"": 15 + 1, ours: 40 + 1}, "each batch has a mark; the second one the rows of the overlap again"


def test_changes_are_published_once_marked_and_given_up_after_three_refusals(site: Site, kafka: str) -> None:  # PE-69
    site.sql(
        "INSERT INTO shop.product_change_log (brand_code, sku, seq, data_version, change_type)"
        " SELECT 'B#', 's', i, 'v', 'UPDATE' FROM generate_series(1, 7) i"
    )
    site.own_namespace()
    assert site.cli.ok("etl", "changes", "--limit", "2") == "published: 7\n"
    assert site.cli.ok("etl", "changes") == "published: 0\n"
    records = read_all(kafka, site.namespace + "products.changes")
    seen = [(r.key(), json.loads(r.value() or b"")["seq"]) for r in records]
    assert seen == [(b'["B#","s"]', i) for i in range(1, 8)]
    site.sql(
        "INSERT INTO shop.product_change_log (brand_code, sku, seq, data_version, change_type)"
        " SELECT repeat('😀', 64), repeat('😀', 64), i, 'v', 'UPDATE' FROM generate_series(1, 2) i"
    )
    refused = site.cli("etl", "changes", MAX_MESSAGE_BYTES="1024")
    assert refused.returncode == 1, refused.stderr
    sql = "SELECT status, retry_count, last_error LIKE '%bytes%' FROM shop.product_change_log WHERE brand_code <> 'B#'"
    assert site.sql(sql + " ORDER BY seq") == [("FAILED", 3, True), ("PENDING", 0, None)]
