"""Ordinary agents, one event at a time, in the same transactions; and Faust's commands around them."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.integration.engine.workers import Shop, totals
from tests.support.waiting import wait_until


def test_ordinary_agents_are_exact_too_and_a_failing_one_stops_the_worker_uncommitted(
    kafka: str, tmp_path: Path, unique: Any
) -> None:  # T1, T13
    with Shop(kafka, tmp_path, unique("plain")) as shop:
        worker = shop.start()
        shop.wait_ready()
        shop.send("events", [{"key": b"k%d" % (i % 7), "value": b"%d" % i} for i in range(500)])
        shop.send("events", [{"key": b"k0", "value": b"{not json", "headers": [("h", b"1")]}])
        shop.wait_done("events")
        shop.command("send", "events", "1000", "--key", "k0")
        shop.wait_done("events")
        shop.send("events", [{"key": b"k1", "value": b"666"}])
        assert worker.wait(40) == 70, "an agent's error stops the worker, non-zero"
        assert "666" in shop.log()
        assert shop.lag("events") > 0, "uncommitted"
        assert len(shop.read("seen")) == 501

        (tmp_path / "forgive").touch()
        worker = shop.start()
        shop.wait_done("events")
        expected: Counter[str] = Counter()
        for i in range(500):
            expected[f"k{i % 7}"] += i
        expected["k0"] += 1000
        expected["k1"] += 666
        assert totals(shop.changelog("sums")) == expected
        seen = Counter(m.key() for m in shop.read("seen"))
        assert sum(seen.values()) == 502, "each event once"
        assert max(json.loads(m.value()) for m in shop.read("seen") if m.key() == b"k1") == expected["k1"]
        (letter,) = shop.read("events.dlq")
        assert (letter.key(), letter.value(), dict(letter.headers())["h"]) == (b"k0", b"{not json", b"1")
        _commands_work(shop)
        assert shop.stop(worker) == 0


def _commands_work(shop: Shop) -> None:
    agents, tables = shop.command("agents"), shop.command("tables")
    for name in ("tally", "add", "archive"):
        assert name in agents
    for name in ("totals", "sums"):
        assert name in tables


def test_two_workers_of_one_slot_are_refused_and_so_is_a_topic_with_other_partitions(
    kafka: str, tmp_path: Path, unique: Any
) -> None:  # T8, T18
    with Shop(kafka, tmp_path, unique("twice")) as shop:
        shop.create("orders", 5)
        worker = shop.start()
        assert worker.wait(40) == 70
        assert "exists with 5 partitions, 2 are declared" in shop.log().replace("\\n", " ")
    with Shop(kafka, tmp_path / "b", unique("twice")) as shop:
        first = shop.start()
        shop.wait_ready()
        second = shop.start()
        assert second.wait(40) == 70
        assert "MILLSTREAM_WORKER_SLOT" in shop.log()
        assert first.poll() is None, "the first one works on"
        shop.order(0, 10)
        shop.wait_done("orders")
        assert shop.stop(first) == 0


def test_a_worker_without_a_broker_says_so_and_ends(tmp_path: Path) -> None:
    with_nobody = "127.0.0.1:1"
    shop = Shop(with_nobody, tmp_path, "nobody", REQUEST_TIMEOUT="2")
    began = time.monotonic()
    worker = shop.start()
    try:
        assert worker.wait(60) not in (0, None)
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
    log = shop.log()
    assert with_nobody in log or "127.0.0.1" in log, log
    assert "worker_failed" in log, log
    assert time.monotonic() - began < 60


def test_a_worker_that_lost_its_group_offsets_stops_with_the_ways_out(kafka: str, tmp_path: Path, unique: Any) -> None:
    """Rule 6: no offset of ours is not zero."""
    with Shop(kafka, tmp_path, unique("lost")) as shop:
        worker = shop.start()
        shop.wait_ready()
        shop.order(0, 20)
        shop.wait_done("orders")
        assert shop.stop(worker) == 0
        wait_until(lambda: not shop.members(), 20, "the group to be empty")
        shop.admin.delete_consumer_groups([shop.group])[shop.group].result(20)
        worker = shop.start()
        assert worker.wait(60) == 70
        assert "LostPositionError" in shop.log()
        assert "millstream reset" in shop.log()
        assert len(shop.sunk()) == 20
