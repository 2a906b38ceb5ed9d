"""Batches under way as metrics and the status page have them."""

from __future__ import annotations

from prometheus_client import REGISTRY

from schemas.control import AbortBatch, Begun, InstanceDone, InstanceFailed, Where
from streams.batches_view import overview
from streams.ledger import Ledger

HALF, BROKEN, GONE, SHOWN = (f"2026-11-23T08:3{n}:00.000000000Z/prod" for n in range(4))
WHERE = Where(topic="rdb.records.prod.a", topic_id="t" * 22, epoch=1, partition=0, begin=0)


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_n_of_n_and_the_missing_instances_of_each_batch() -> None:  # RU-36, T23
    store: dict[bytes, bytes] = {}
    ledger = Ledger(store)

    def begin(batch: str, *instances: str, of: list[str]) -> None:
        for i in instances:
            ledger.apply(batch, Begun(run=f"run-{i}", instance=i, instances=of, where=WHERE), 1000)

    begin(HALF, "a:1", "b:1", of=["a:1", "b:1", "c:1"])
    done = InstanceDone(run="run-a:1", instance="a:1", stored=0, rows=0, messages=0, digest=0, where=WHERE)
    ledger.apply(HALF, done, 61_000)
    begin(BROKEN, "a:1", of=["a:1"])
    ledger.apply(BROKEN, InstanceFailed(run="run-a:1", instance="a:1", reason="is cut off"), 2000)
    begin(GONE, "a:1", of=["a:1", "z:1"])
    ledger.apply(GONE, AbortBatch(reason="by hand"), 3000)
    begin(SHOWN, "a:1", of=["a:1"])
    ledger.published(SHOWN, 4000)

    found = overview(lambda prefix: sorted((k, v) for k, v in store.items() if k.startswith(prefix)), 101.0)
    broken, half = found  # the newest first; finished ones are not under way
    assert (half["done"], half["instances"], half["running"]) == (1, 3, 1)
    assert (half["missing_instances"], half["running_instances"]) == (["c:1"], ["b:1"])
    assert (half["seconds"], half["quiet_seconds"]) == (100, 40)
    assert (broken["state"], broken["failed_instances"]) == ("failed", ["a:1"])
    assert "is cut off" in broken["reason"]
    states = ("missing", "running", "done", "failed")
    assert [value("millstream_batch_instances", state=s) for s in states] == [1, 1, 1, 1]
    assert [value("millstream_batches", state=s) for s in ("running", "failed")] == [1, 1]
    assert (value("millstream_batch_oldest_seconds"), value("millstream_batch_quiet_seconds")) == (100, 40)
    assert overview(lambda _prefix: [], 101.0) == []
    assert value("millstream_batch_oldest_seconds") == 0
