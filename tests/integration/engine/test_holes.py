"""Holes of the protocol's review, real workers on a real log: what is lost, made anew or gone is never passed over."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import pytest
from confluent_kafka.admin import NewTopic, OffsetSpec  # type: ignore[attr-defined]

from millstream.cluster import TP
from streams.engine.plan import Plan, Position
from tests.integration.engine.workers import Shop
from tests.support.kafka import produce
from tests.support.waiting import wait_until


def recreate(shop: Shop, topic: str, partitions: int) -> None:
    full = shop.namespace + topic
    old = shop.cluster.topics([full])[full].id
    shop.admin.delete_topics([full], operation_timeout=30)[full].result(30)

    def again() -> bool:
        shop.admin.create_topics([NewTopic(full, partitions, 1)], operation_timeout=30)[full].exception(30)
        return full in (found := shop.cluster.topics([full])) and found[full].id != old

    wait_until(again, 30, f"{full} to be made anew", every=0.01)


def ids(shop: Shop) -> Counter[int]:
    return Counter(int(line.split()[1]) for line in shop.sunk())


def test_a_topic_made_anew_while_its_worker_is_down_is_read_from_its_beginning(
    kafka: str, tmp_path: Path, unique: Any
) -> None:  # hole b
    with Shop(kafka, tmp_path, unique("anew")) as shop:
        worker = shop.start()
        shop.wait_ready()
        shop.order(0, 40)
        shop.wait_done("orders")
        assert shop.stop(worker) == 0
        recreate(shop, "orders", 2)
        shop.order(100, 60)
        shop.start()
        shop.wait_ready(times=2)
        shop.wait_done("orders")
        assert ids(shop) == Counter([*range(40), *range(100, 160)])


@pytest.mark.parametrize("more", [5, 400])
def test_a_topic_made_anew_under_a_running_worker_is_not_read_on_in_the_middle(
    kafka: str, tmp_path: Path, unique: Any, more: int
) -> None:  # hole b: with fewer records than were read of the old one, and with more
    with Shop(kafka, tmp_path, unique("under")) as shop:
        worker = shop.start()
        shop.wait_ready()
        shop.order(0, 40)
        shop.wait_done("orders")
        recreate(shop, "orders", 2)
        shop.order(1000, more)
        expected = Counter([*range(40), *range(1000, 1000 + more)])

        def exact() -> bool:
            nonlocal worker
            if worker.poll() is not None:  # a position beyond the new log's end ends it (hole c)
                assert worker.returncode == 70
                worker = shop.start()
            assert not Counter(n for n in ids(shop).values() if n > 1), "doubled"
            return ids(shop) == expected

        wait_until(exact, 60, "all records of both logs in the sink")


def test_a_plan_of_which_only_an_aborted_transaction_is_left_stops_the_worker(
    kafka: str, tmp_path: Path, unique: Any
) -> None:  # U6, hole c
    with Shop(kafka, tmp_path, unique("hollow")) as shop:
        worker = shop.start()
        shop.wait_ready()
        topic = shop.namespace + "orders"
        produce(kafka, topic, [{"value": b'{"id":%d}' % i, "partition": 0} for i in range(5)])
        shop.wait_done("orders")
        assert shop.stop(worker) == 0
        wait_until(lambda: not shop.members(), 20, "the group to be empty")
        aborted = ck.Producer({"bootstrap.servers": kafka, "transactional.id": unique("aborted")})
        aborted.init_transactions(30)
        aborted.begin_transaction()
        for _ in range(3):
            aborted.produce(topic, b'{"id":99}', partition=0)
        aborted.flush(30)
        aborted.abort_transaction(30)
        tp = TP(topic, 0)
        # The abort is answered before its marker is in the log.
        wait_until(lambda: shop.cluster.offsets([tp], OffsetSpec.latest()) == {tp: 9}, 60, "the marker of the abort")
        # As if they had been committed records, planned, and then been compacted away at the log's end.
        position = Position(5, shop.cluster.topics([topic])[topic].id, 1, Plan(5, 7, 3, 99))
        consumer = ck.Consumer({"bootstrap.servers": kafka, "group.id": shop.group})
        consumer.commit(offsets=[ck.TopicPartition(*tp, 5, metadata=position.metadata)], asynchronous=False)
        consumer.close()
        assert shop.start().wait(60) == 70
        assert "RangeChangedError" in shop.log()
        assert "held 3 records" in shop.log()
