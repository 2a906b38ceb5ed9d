"""The README's stream, and what a worker logs, on a real Kafka."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from schemas.names import dlq_topic
from tests.acceptance.cli import FIXTURES, Cli, pairs
from tests.support.kafka import produce, read_all
from tests.support.waiting import wait_until
from tests.unit.docs.documents import ENGLISH, ROOT, code_blocks


def test_the_stream_of_the_readme_runs_as_it_stands(kafka: str, tmp_path: Path, unique: Any) -> None:
    (code,) = (text for language, text in code_blocks(ENGLISH) if language == "python")
    (tmp_path / "orders.py").write_text(code, "utf-8")
    namespace = unique("readme") + "."
    settings = {"STREAMS": "orders", "APP_ID": "orders", "NAMESPACE": namespace}
    cli = Cli(kafka, tmp_path, **settings)
    cli.environment["PYTHONPATH"] = "."
    topic, out = f"{namespace}orders", tmp_path / "orders-out"
    orders = [{"id": i, "customer": f"c{i % 7}", "cents": i} for i in range(99)]
    records = [{"key": order["customer"], "value": json.dumps(order)} for order in orders]

    def stored() -> int:
        return sum(pq.read_metadata(path).num_rows for path in out.rglob("*.parquet"))

    with cli.worker():
        log = tmp_path / "worker-w1.log"
        wait_until(lambda: "partitions_loaded" in log.read_text(), 60, "the worker to run", every=0.2)
        produce(kafka, topic, [*records[:50], {"key": "c1", "value": "{not json"}, *records[50:]])
        wait_until(lambda: stored() == 99, 60, "all records to be in files", every=0.2)
    assert sorted(pq.read_table(out)["id"].to_pylist()) == list(range(99))
    (letter,) = read_all(kafka, dlq_topic(topic))
    assert letter.value() == b"{not json"
    headers = dict(letter.headers() or ())
    assert headers["millstream.dlq.topic"] == topic.encode()
    assert headers.keys() == {f"millstream.dlq.{n}" for n in ("reason", "topic", "partition", "offset", "timestamp")}


FIELDS = {
    "progress_update": {"cluster", "batch", "processed_records", "completed_instances", "rps", "description"},
    "instance_completed": {"cluster", "batch", "instance", "records", "completed_instances", "description"},
    "batch_finalized": {"cluster", "batch", "processed_records", "instances", "rps", "description"},
    "cluster_dump_start": {"cluster", "batch", "instances", "description"},
    "dump_completed": {"cluster", "batch", "processed_records", "instances", "rps", "description"},
}


def test_a_workers_log_reads_as_the_rows_ask(kafka: str, tmp_path: Path, unique: Any) -> None:
    # RU-36, RU-43, RU-55, RU-57, RU-60, RU-71, RU-73, RP-55, T24
    cli = Cli(
        kafka, tmp_path, NAMESPACE=unique("log") + ".", PARQUET_DIR=str(tmp_path / "out"), LOG_FORMAT="json",
        DISCOVERY_INTERVAL="1",
    )  # fmt: skip
    cli.environment["TZ"] = "Asia/Shanghai"
    files = {"10.0.0.1:6379": FIXTURES / "redis7.0-all.rdb", "10.0.0.2:6379": FIXTURES / "redis6.2-all.rdb"}
    log = tmp_path / "worker-w1.log"
    cli.ok(
        "dump",
        "from-file",
        *pairs(files),
        "--cluster",
        "prod",
        "--batch-timestamp",
        "2026-11-23T08:30:00+08:00",
        "feed",
    )
    began = time.time()
    with cli.worker():
        wait_until(lambda: "dump_completed" in log.read_text(), 60, "the batch to be published", every=0.2)
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert (tmp_path / "out" / "prod" / "2026-11-23_00-30-00.000Z" / "10.0.0.1-6379.parquet").exists()
    count = Counter(line["operation"] for line in lines)
    assert count.keys() >= FIELDS.keys()
    assert count["instance_completed"] == len(files)
    for line in lines:
        assert next(iter(line)) == "operation"
        assert "description" not in line or list(line)[-1] == "description"
        assert line.get("instance", "10.0.0.1:6379") in files
        assert line["timestamp"].endswith("Z")
        assert line["timestamp"][:4] == time.strftime("%Y", time.gmtime(began))
        assert line.keys() >= FIELDS.get(line["operation"], set())
    last = [line for line in lines if line["operation"] == "progress_update"][-1]
    assert (last["processed_records"], last["completed_instances"]) == (161, "2/2")
    assert last["rps"] > 0


@pytest.mark.parametrize("command", ["make", "make help"])
def test_make_lists_the_two_commands(command: str) -> None:
    said = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"demo", "test", "kafka"} <= set(re.findall(r"^  make ([a-z-]+)", said, re.MULTILINE))
