"""Chunk agents in real workers: exact in sink, table, output and dead letters over stops, kills and lost disks."""

from __future__ import annotations

import shutil
import signal
import socket
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from millstream.child import free_port
from tests.integration.engine.workers import Shop, totals
from tests.support.waiting import wait_until


def test_a_stream_is_exact_over_a_stop_a_kill_and_a_lost_disk(kafka: str, tmp_path: Path, unique: Any) -> None:
    """T1, T2, T3, T4, T13, T17, T18, T22; one application through five lives of its worker."""
    with Shop(kafka, tmp_path, unique("shop")) as shop:
        # A first life, stopped in the middle of the stream.
        port = free_port()
        worker = shop.start(web=port)
        shop.wait_ready()
        shop.order(0, 1500)
        bad = {"value": b"\xff{not json", "key": b"poison", "headers": [("trace", b"abc"), ("trace", b"def")]}
        shop.send("orders", [bad, {"value": None, "key": b"gone"}, {"value": b'{"item":"no id"}'}])
        wait_until(lambda: len(shop.sunk()) > 300, 40, "some chunks")
        _views_are_for_this_host_only(port)
        assert shop.stop(worker) == 0
        assert not [p for p in (tmp_path / "sink").iterdir() if p.suffix == ".tmp"]  # T22

        # A second one, killed while it works.
        worker = shop.start()
        shop.wait_ready(times=2)
        shop.order(1500, 1500)
        wait_until(lambda: len(shop.sunk()) > 1700, 40, "more chunks")
        shop.stop(worker, signal.SIGKILL)

        # A third one, to the end.
        worker = shop.start()
        shop.wait_done("orders")
        apples = shop.changelog("totals")
        assert _is_exact(shop, 3000)
        letters = shop.read("orders.dlq")
        assert {_reason_free(m) for m in letters} == {
            (b"poison", b"\xff{not json", 2),
            (b"gone", None, 0),
            (None, b'{"item":"no id"}', 0),
        }
        assert len(letters) == 3
        for m in letters:
            headers = dict(m.headers())
            assert headers["millstream.dlq.topic"].decode() == shop.namespace + "orders"
            assert headers["millstream.dlq.reason"]
            assert int(headers["millstream.dlq.offset"]) >= 0
        assert shop.stop(worker) == 0
        assert shop.on_disk("totals") == apples

        # A fourth one on another disk: the table comes back from its changelog; a deleted key stays deleted.
        shutil.rmtree(tmp_path / "data")
        worker = shop.start()
        shop.wait_ready(times=4)
        shop.send("orders", [{"value": b'{"id":1,"item":"returned"}', "partition": p} for p in (0, 1)])
        shop.wait_done("orders")
        assert shop.stop(worker) == 0
        without_apples = {k: v for k, v in apples.items() if k[1] != b'"apples"'}
        assert shop.on_disk("totals") == shop.changelog("totals") == without_apples
        shutil.rmtree(tmp_path / "data")
        worker = shop.start()
        shop.wait_ready(times=5)
        assert shop.stop(worker) == 0
        assert shop.on_disk("totals") == without_apples


def _reason_free(message: Any) -> tuple[Any, Any, int]:
    originals = [name for name, _ in message.headers() if name == "trace"]
    return message.key(), message.value(), len(originals)


def _is_exact(shop: Shop, n: int) -> bool:
    lines = [line.split() for line in shop.sunk()]
    assert Counter(int(i) for _, i, _ in lines) == Counter(range(n)), "the sink"
    items = Counter(item for _, _, item in lines)
    assert totals(shop.changelog("totals")) == items == Counter(apples=1000, pears=1000, plums=1000), "the table"
    assert Counter(int(m.key()) for m in shop.read("large")) == Counter(range(0, n, 10)), "the output topic"
    return True


def _views_are_for_this_host_only(port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        assert answer.status == 200
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        address, state = line.split()[1], line.split()[3]
        if state == "0A" and int(address.split(":")[1], 16) == port:
            assert socket.inet_ntoa(bytes.fromhex(address.split(":")[0])[::-1]) == "127.0.0.1"
            break
    else:
        raise AssertionError(f"nothing listens on {port}")


def test_a_stop_during_a_long_write_ends_within_its_bound_and_loses_nothing(
    kafka: str, tmp_path: Path, unique: Any
) -> None:  # T22
    with Shop(kafka, tmp_path, unique("slow"), SHUTDOWN_TIMEOUT="1", REBALANCE_TIMEOUT="4") as shop:
        (tmp_path / "slow").touch()
        worker = shop.start()
        shop.wait_ready()
        shop.order(0, 10)
        wait_until((tmp_path / "writing").exists, 30, "the write")
        began = time.monotonic()
        shop.stop(worker)
        assert time.monotonic() - began < 20
        (tmp_path / "slow").unlink()
        worker = shop.start()
        shop.wait_done("orders")
        assert Counter(int(line.split()[1]) for line in shop.sunk()) == Counter(range(10))
        assert shop.stop(worker) == 0


def test_instances_spread_over_workers_and_new_ones_are_found(kafka: str, tmp_path: Path, unique: Any) -> None:
    """T11: six topics of one partition on three workers. T12: a topic that comes while they run."""
    with Shop(kafka, tmp_path, unique("spread")) as shop:
        for i in range(6):
            shop.create(f"dump.{i}")
        slots = ["w0", "w1", "w2"]
        workers = [shop.start(slot) for slot in slots]

        def held() -> dict[str, int]:
            return {
                m.member_id: sum(1 for tp in m.assignment.topic_partitions if ".dump." in tp.topic)
                for m in shop.members()
            }

        wait_until(lambda: sorted(held().values()) == [2, 2, 2], 60, "six topics on three workers, two each")
        for i in range(6):
            shop.order(i * 10, 10, topic=f"dump.{i}")
        shop.create("dump.new")
        shop.order(1000, 10, topic="dump.new")
        for topic in [*(f"dump.{i}" for i in range(6)), "dump.new"]:
            shop.wait_done(topic)
        ids = [int(line.split()[1]) for i in range(6) for line in shop.sunk(f"dump.{i}")]
        assert Counter(ids) == Counter(range(60))
        assert len(shop.sunk("dump.new")) == 10
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        assert [worker.wait(40) for worker in workers] == [0, 0, 0]
