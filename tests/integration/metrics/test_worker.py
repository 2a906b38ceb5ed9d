"""A real worker, scraped and probed while it restores, works, waits and is done."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import pytest

from millstream import metrics
from millstream.child import free_port
from tests.integration.engine.workers import Shop
from tests.integration.metrics.web import Scrape, Web, value
from tests.support.waiting import wait_until
from tests.unit.docs import metrics_table

pytestmark = pytest.mark.kafka

OTHERS = {"Batches", "Feeding", "Outbox", "Projection and products"}
"""Groups of metrics that are not set in this application; those without labels are 0."""
RARE = {"COMMIT_ERRORS", "ATTEMPTS_RAISED", "SINK_ERRORS", "SINK_RETRIES"}
"""Labelled by an error or a fault that does not happen here (tests/unit: test_sink_wrapper, test_cycle)."""
ORDERS = 1000


@pytest.fixture
def shop(kafka: str, tmp_path: Path, unique: Any) -> Any:
    with Shop(kafka, tmp_path / "home", unique("metrics"), METRICS_INTERVAL="0.1", READY_STALLED="0.2") as shop:
        yield shop


def held_open(shop: Shop, topic: str) -> ck.Producer:
    """A transaction that has a record in the topic: who loads it has to wait."""
    producer = ck.Producer({"bootstrap.servers": shop.kafka, "transactional.id": f"{shop.namespace}holds"})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(shop.namespace + topic, b"7", b'"apples"', 0)
    assert producer.flush(30) == 0
    return producer


def test_a_worker_shows_what_it_does_while_it_restores_works_waits_and_is_done(shop: Shop) -> None:
    """DF-71, DF-72, DF-74, RO-41, T23."""
    port = free_port()
    web, slow = Web(port), shop.home / "slow"
    shop.create("shop-totals-changelog", 2)
    shop.create("dump.a", 1)
    shop.create("dump.b", 1)

    # A first life dies with a chunk in the sink that is not committed.
    first = shop.start(FAILPOINTS="cycle.written=kill")
    shop.wait_ready()
    shop.order(0, ORDERS)
    assert first.wait(60) == -9

    # Its successor is told of another writer's open transaction, and cannot have its tables before that ends.
    holder = held_open(shop, "shop-totals-changelog")
    slow.touch()
    worker = shop.start(web=port)
    text = wait_until(lambda: t if (t := web.get("/readyz")[1]).count("left to be loaded") else "", 60, "restoring")
    assert "restoring: 1 changelog records of totals are left to be loaded" in text
    assert web.get("/readyz")[0] == 503
    assert web.get("/livez") == (200, "ok\n")
    restoring = web.scrape()  # a Prometheus that scrapes during a restore
    assert value(restoring, "millstream_restoring") == 1
    assert value(restoring, "millstream_restore_left_records", table="totals") == 1
    assert value(restoring, "millstream_not_ready", reason="restoring") == 1
    assert value(restoring, "millstream_ready") == 0
    assert [t for t in web.status()["tables"] if t["restore_left"]] != []
    holder.commit_transaction(30)

    # It works, slowly.
    wait_until(lambda: web.value("millstream_replays_total", stream=f"{shop.namespace}orders") >= 1, 60, "a replay")
    wait_until((shop.home / "writing").exists, 60, "a slow write")
    wait_until(lambda: "stalled" in web.get("/readyz")[1], 30, "a chunk that takes its time to be told of")
    told = next(p for p in web.status()["partitions"] if p["state"] == "writing" and p["lag"])
    assert (told["stream"], told["chunk"]["first"]) == (f"{shop.namespace}orders", told["offset"])
    working = web.scrape()
    assert value(working, "millstream_lag_records", stream=told["stream"]) > 0
    assert value(working, "millstream_lag_seconds", stream=told["stream"]) > 0
    assert value(working, "millstream_partitions", stream=told["stream"], state="writing") >= 1
    assert value(working, "millstream_sink_calls", sink="files") >= 1
    slow.unlink()

    shop.send("events", [{"key": b"k", "value": b"1"}])
    for topic in ("dump.a", "dump.b"):
        shop.send(topic, [{"value": json.dumps({"id": 1, "item": "x"}).encode()}])
    shop.send("orders", [{"value": b"{ not JSON"}])
    for topic in ("orders", "events"):
        shop.wait_done(topic)
    wait_until(lambda: web.value("millstream_rows_total", stream=f"{shop.namespace}dump") == 2, 60, "both dumps")
    wait_until(lambda: sum(p["lag"] for p in web.status()["partitions"]) == 0, 30, "no lag")  # markers are none
    wait_until(lambda: web.get("/readyz") == (200, "ok\n"), 30, "the worker to be ready")
    wait_until(lambda: web.value("millstream_buffered_bytes") == 0, 30, "the next read, which sets it")
    check_all(web.scrape(), shop)
    code, page = web.get("/status")
    assert code == 200
    assert f"{shop.namespace}dump.a" in page
    assert shop.stop(worker) == 0


def check_all(scrape: Scrape, shop: Shop) -> None:
    """Every metric of a worker is there, with labels that are allowed and a value that can be."""
    missing = []
    for group, names in metrics_table.groups().items():
        for name in names:
            metric = metrics.declared()[name]
            samples = [s for found in scrape.values() for s in found if s.name.startswith(metric._name)]
            if not samples and not (name in RARE or (group in OTHERS and metric._labelnames)):
                missing.append(name)
    assert missing == []
    bounded = {
        "stream": {shop.namespace + topic for topic in ("orders", "events", "dump")},
        "table": {"totals", "sums"}, "sink": {"files"}, "partition": {"0", "1"}, "stage": set(metrics.STAGES),
        "state": {*metrics.PARTITION_STATES, *metrics.BATCH_STATES, *metrics.INSTANCE_STATES},
        "reason": set(metrics.REASONS), "operation": {"open", "have", "write_chunk"}, "error": {"PartitionsLostError"},
    }  # fmt: skip
    ours = [s for samples in scrape.values() for s in samples if s.name.startswith("millstream_")]
    for s in ours:
        for label, found in s.labels.items():
            assert label in ("le", "version") or found in bounded[label], (s.name, label, found)  # T23
        assert s.value >= 0, s
    orders = {"stream": f"{shop.namespace}orders"}
    exact = {
        "millstream_output_records_total": (orders, 1), "millstream_dead_letters_total": (orders, 1),
        "millstream_lag_records": (orders, 0), "millstream_lag_seconds": (orders, 0),
        "millstream_ready": ({}, 1), "millstream_restoring": ({}, 0), "millstream_assigned_partitions": (orders, 2),
        "millstream_sink_failing_seconds": ({"sink": "files"}, 0), "millstream_sink_calls": ({"sink": "files"}, 0),
        "millstream_restore_left_records": ({"table": "totals"}, 0), "millstream_buffered_bytes": ({}, 0),
        "millstream_parked_partitions": (orders, 0),
        "millstream_paused_partitions": (orders, 0), "millstream_fenced_total": ({}, 0),
    }  # fmt: skip
    for name, (labels, expected) in exact.items():
        got = value(scrape, name, **labels)
        assert got == expected or (name == "millstream_output_records_total" and got > 0), (name, got)
    for name, labels in {
        "millstream_rows_total": orders, "millstream_bytes_total": orders, "millstream_chunk_rows_sum": orders,
        "millstream_chunk_bytes_sum": orders, "millstream_fetched_records_total": orders,
        "millstream_fetched_bytes_total": orders, "millstream_commit_seconds_count": {},
        "millstream_commit_chunks_total": {}, "millstream_table_changes_total": {"table": "totals"},
        "millstream_table_keys": {"table": "totals"}, "millstream_table_bytes": {"table": "totals"},
        "millstream_restore_seconds_count": {}, "millstream_rebalances_total": {},
        "millstream_sink_rows_total": {"sink": "files"}, "millstream_sink_skipped_total": {"sink": "files"},
        "millstream_event_loop_delay_seconds_count": {},
    }.items():  # fmt: skip
        assert value(scrape, name, **labels) > 0, name
    for state in metrics.STATES:
        assert value(scrape, "millstream_chunk_state_seconds_count", **orders, state=state) > 0, state
    for name in ("millstream_last_commit_timestamp_seconds", "millstream_lag_timestamp_seconds"):
        assert 0 <= time.time() - value(scrape, name) < 600, name


def test_a_port_that_was_given_and_is_taken_ends_the_worker_and_says_so(shop: Shop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        worker = shop.start(web=port)
        assert worker.wait(60) == 70
    assert f"127.0.0.1:{port}: Address already in use" in shop.log()
    assert "MILLSTREAM_WEB_PORT" in shop.log()
    assert "Traceback" not in shop.log()
