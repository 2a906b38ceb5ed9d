"""docs/operations.md, "Sinks that are down": the partition waits, the worker keeps its place, nothing is lost."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from bench.make_rdb import write_mixed
from tests.acceptance.cli import Cli, clickhouse, pairs
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.waiting import wait_until

KEYS, SESSION = 20_000, 6.0


def test_a_sink_that_is_down_past_the_session_timeout_delays_its_batch_and_costs_nothing_else(
    kafka: str, tmp_path: Path, unique: Any
) -> None:  # T21
    server = ClickHouseServer(tmp_path / "ch")
    cli = Cli(
        kafka, tmp_path, NAMESPACE=unique("down") + ".", PARQUET_DIR=str(tmp_path / "out"), DISCOVERY_INTERVAL="1",
        CLICKHOUSE_URL=server.url("redis"), CLICKHOUSE_AUTO_CREATE_TABLES="true", CHUNK_MAX_ROWS="2000",
        SESSION_TIMEOUT=f"{SESSION:g}", HEARTBEAT_INTERVAL="1", REBALANCE_TIMEOUT="12",
    )  # fmt: skip
    write_mixed(tmp_path / "a.rdb", KEYS)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    dump = [
        "dump",
        "from-file",
        *pairs({"a:1": tmp_path / "a.rdb"}),
        "--cluster",
        "c",
        "--batch-timestamp",
        now,
        "feed",
    ]
    log = tmp_path / "worker-w1.log"

    def logged(operation: str) -> int:
        return len(re.findall(rf"operation={operation}\b", log.read_text()))

    try:
        with cli.worker() as worker:
            wait_until(lambda: logged("partitions_loaded"), 60, "the worker to run", every=0.2)
            server.stop()
            cli.ok(*dump)
            retried = wait_until(lambda: logged("open_batch_retry"), 60, "a retry", every=0.2)
            down = time.monotonic()
            assignments = logged("partitions_assigned")
            wait_until(lambda: time.monotonic() - down > 2.5 * SESSION, 60, "the session and poll timeouts", every=0.5)
            assert worker.poll() is None
            assert logged("partitions_assigned") == assignments
            assert logged("open_batch_retry") > retried
            assert logged("dump_completed") == logged("partitions_lost") == 0
            server = ClickHouseServer(tmp_path / "ch", port=server.port)
            wait_until(lambda: logged("dump_completed"), 60, "the batch to be published", every=0.2)
    finally:
        server.stop()
    (batch,) = cli.batches()
    assert (batch["state"], batch["records"], batch["dead_letters"]) == ("published", KEYS, 0)
    (file,) = (tmp_path / "out").glob("c/*/*.parquet")
    assert len(set(pq.read_table(file)["key"].to_pylist())) == pq.read_metadata(file).num_rows == KEYS
    assert clickhouse(tmp_path / "ch", "SELECT count(), uniqExact(key) FROM redis.redis_records_view") == [
        (str(KEYS), str(KEYS))
    ]
