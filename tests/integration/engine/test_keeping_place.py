"""A worker that fetches nothing stays in its group: a spare one, one with full buffers, one that loads for long."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.engine.workers import Shop
from tests.support.waiting import wait_until

REBALANCE = 2.0


def test_a_worker_without_partitions_is_still_there_when_one_comes(
    kafka: str, tmp_path: Path, unique: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # T12, T21
    monkeypatch.setattr("tests.integration.engine.workers.APP", "tests.integration.engine.later")
    with Shop(kafka, tmp_path / "s", unique("later"), REBALANCE_TIMEOUT=REBALANCE) as shop:
        worker = shop.start()
        wait_until(lambda: "partitions_assigned" in shop.log(), 40, "the worker to join")
        idle = time.monotonic()
        wait_until(lambda: time.monotonic() - idle > 2.5 * REBALANCE, 20, "the poll timeout to pass", every=0.2)
        assert len(shop.members()) == 1, "the worker left its group while it had nothing to fetch"
        shop.create("later-1")
        shop.order(0, 10, topic="later-1")
        wait_until(lambda: len(shop.sunk("later-1")) == 10, 20, "the rows")
        assert shop.stop(worker) == 0
