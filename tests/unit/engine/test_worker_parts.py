"""Small parts of the worker: group metadata, the slot lock, counted threads, restoring decisions."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

from millstream.cluster import TP, TopicInfo
from millstream.errors import ConfigError
from millstream.settings import Settings
from streams.engine.failure import EXIT_STUCK, CountingExecutor
from streams.engine.recovery import TableLog, _check_partitions
from streams.engine.registry import Entry, Registry
from streams.engine.slot import SlotLock
from streams.engine.transaction import group_metadata


@pytest.mark.parametrize(("generation", "member"), [(-1, "member"), (-1, ""), (0, ""), (7, "")])
def test_metadata_that_the_broker_would_accept_unfenced_is_never_made(generation: int, member: str) -> None:
    with pytest.raises(ValueError, match="unfenced"):
        group_metadata("group", generation, member)


def test_group_metadata_is_what_librdkafka_writes() -> None:
    assert group_metadata("g", 258, "m-1") == b"CGMDv2:\x02\x01\0\0g\0m-1\0\x01"


def test_a_slot_is_for_one_live_worker(tmp_path: Path) -> None:  # T18
    lock = SlotLock(tmp_path / "slot")
    with pytest.raises(ConfigError, match="MILLSTREAM_WORKER_SLOT"):
        SlotLock(tmp_path / "slot")
    SlotLock(tmp_path / "other").release()
    lock.release()
    SlotLock(tmp_path / "slot").release()


def test_a_killed_worker_leaves_its_slot_free_and_its_id_in_the_refusal(tmp_path: Path) -> None:
    code = f"from streams.engine.slot import *\nlock = SlotLock(Path({str(tmp_path)!r}))\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ConfigError, match=f"process {other.pid}"):
            SlotLock(tmp_path)
        other.kill()
    SlotLock(tmp_path).release()


def test_counted_threads_tell_when_the_last_one_is_through() -> None:  # hole l
    threads, gate = CountingExecutor(2), threading.Event()
    assert threads.wait_idle(0)
    running = threads.submit(gate.wait)
    assert not threads.wait_idle(0.01)
    gate.set()
    assert threads.wait_idle(5)
    assert running.result()
    failed = threads.submit(lambda: 1 / 0)
    assert threads.wait_idle(5)
    assert isinstance(failed.exception(), ZeroDivisionError)
    threads.shutdown()


def test_a_stop_that_hangs_ends_the_process() -> None:  # T22
    code = "import time\nfrom streams.engine.failure import end_within\nend_within(0.2, 'the stop')\ntime.sleep(60)"
    ended = subprocess.run([sys.executable, "-c", code], timeout=30, capture_output=True)
    assert ended.returncode == EXIT_STUCK


def test_a_topic_with_other_partitions_than_its_tables_changelog_is_refused() -> None:  # hole d, T8
    topics = {"orders": TopicInfo("a", 4), "refunds": TopicInfo("b", 2), "log": TopicInfo("c", 4)}
    table: TableLog = TableLog("log", None)  # type: ignore[arg-type]
    _check_partitions([TP("orders", 3)], {TP("orders", 3): [table]}, topics)
    with pytest.raises(ConfigError, match=r"'refunds' has 2 partitions, the changelog 'log'.* has 4"):
        _check_partitions([TP("refunds", 1)], {TP("refunds", 1): [table]}, topics)


def test_a_registry_record_says_which_partition_was_started() -> None:  # rule 6
    registry = Registry(None, "app")  # type: ignore[arg-type]
    made = registry.output("topic-id", Entry("orders", 3, 2))
    assert (made.topic, made.key, made.partition) == ("app-registry", b"topic-id/3", 0)
    assert made.value == b'{"topic":"orders","partition":3,"epoch":2}'
    declared = registry.declaration(Settings())
    assert isinstance(declared, NewTopic)
    assert (declared.num_partitions, declared.config["cleanup.policy"]) == (1, "compact")
