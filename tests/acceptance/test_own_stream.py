"""A user's own stream: examples/orders.py, named in the settings, by a real worker on a real Kafka."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from millstream.cluster import Cluster
from millstream.settings import override_settings
from tests.support.kafka import produce, read_all
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/orders.py"


def test_an_own_module_with_schema_table_sink_and_output_runs_without_touching_ours(
    kafka: str, unique: Any, tmp_path: Path
) -> None:
    namespace = f"{unique('own')}."
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MILLSTREAM_")}
    env = clean | {
        "MILLSTREAM_STREAMS": "examples.orders",
        "MILLSTREAM_APP_ID": "orders",
        "MILLSTREAM_NAMESPACE": namespace,
        "MILLSTREAM_BOOTSTRAP_SERVERS": kafka,
        "MILLSTREAM_DATA_DIR": str(tmp_path),
        "MILLSTREAM_CHUNK_MAX_AGE": "0.1",
        "PYTHONPATH": str(ROOT),
    }
    log = tmp_path / "worker.log"
    with log.open("wb") as out:
        worker = subprocess.Popen(
            [sys.executable, "-m", "faust", "-A", "streams", "worker", "--without-web"],
            cwd=tmp_path, env=env, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        wait_until(lambda: "partitions_loaded" in log.read_text(), 60, "the worker to load its partitions")
        orders = [{"id": i, "customer": f"c{i % 3}", "cents": i * 1000} for i in range(200)]
        produce(
            kafka,
            f"{namespace}orders",
            [*({"key": o["customer"], "value": json.dumps(o)} for o in orders), {"key": "c0", "value": "{broken"}],
        )
        files = tmp_path / "orders"
        wait_until(lambda: _rows(files) == len(orders), 60, f"200 rows in {files}; see {log}")
        wait_until(lambda: len(read_all(kafka, f"{namespace}large-orders")) == 100, 30, "100 output records")
        wait_until(lambda: _exists(kafka, f"{namespace}orders.dlq"), 30, "the dead-letter topic")
        letters = wait_until(lambda: read_all(kafka, f"{namespace}orders.dlq"), 30, "the dead letter")
    finally:
        worker.send_signal(signal.SIGTERM)
        code = worker.wait(60)
    assert code == 0, log.read_text()[-3000:]
    large = read_all(kafka, f"{namespace}large-orders")
    assert sorted(json.loads(m.value())["id"] for m in large) == list(range(100, 200))
    assert [m.value() for m in letters] == [b"{broken"]
    sums = {json.loads(m.key()): json.loads(m.value()) for m in read_all(kafka, f"{namespace}orders-spent-changelog")}
    assert sums == {f"c{k}": sum(o["cents"] for o in orders if o["customer"] == f"c{k}") for k in range(3)}


def _exists(kafka: str, topic: str) -> bool:
    return bool(Cluster({"bootstrap.servers": kafka}).topics([topic]))


def _rows(directory: Path) -> int:
    return sum(pq.read_metadata(f).num_rows for f in directory.rglob("*.parquet"))


def test_the_page_about_writing_a_stream_shows_the_example_as_it_is() -> None:
    code = EXAMPLE.read_text().partition('"""\n\n')[2]
    page = (ROOT / "docs/write-a-stream.md").read_text()
    assert code.strip() in page
    assert len(code.strip().splitlines()) <= 35


async def test_the_page_about_testing_shows_a_test_that_passes() -> None:
    page = (ROOT / "docs/testing.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    space: dict[str, Any] = {}
    exec(compile(code, "docs/testing.md", "exec"), space)
    import streams

    streams.__dict__.pop("app", None)
    sys.modules.pop("examples.orders", None)
    try:
        with override_settings():
            await space["test_large_orders_are_passed_on"]()
    finally:
        streams.__dict__.pop("app", None)
        sys.modules.pop("examples.orders", None)
