"""`verify batch`: a published batch in Parquet and in ClickHouse, and what the archive counted of its topics."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from millstream.settings import Settings
from streams.cli.states import States
from streams.ledger import PUBLISHED
from tests.acceptance.cli import FIXTURES, Cli, clickhouse, pairs
from tests.conftest import Unique
from tests.support.waiting import wait_until

FILES = {"a:1": "redis6.2-all", "b:1": "valkey9-all", "c:1": "redis6.2-empty"}


def verified(cli: Cli, *arguments: str, **settings: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = cli("verify", "batch", "c", *arguments, "--json", **settings)
    assert "Traceback" not in done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {verdict["name"].partition(" ")[0]: verdict for verdict in found}


def test_a_batch_is_compared_row_by_row_and_with_the_facts(kafka: str, tmp_path: Path, unique: Unique) -> None:
    out, engine = tmp_path / "out", tmp_path / "engine"
    at = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}.123456789Z"
    cli = Cli(kafka, tmp_path, NAMESPACE=unique("batch") + ".", PARQUET_DIR=str(out), SESSION_TIMEOUT="6",
              HEARTBEAT_INTERVAL="1", DISCOVERY_INTERVAL="1", CLICKHOUSE_AUTO_CREATE_TABLES="true",
              CLICKHOUSE_URL=f"chdb://{engine}?database=d")  # fmt: skip
    files = {instance: FIXTURES / f"{name}.rdb" for instance, name in FILES.items()}
    with cli.worker():
        cli.ok("dump", "from-file", *pairs(files), "--cluster", "c", "--batch-timestamp", at, "feed")
        with States(Settings(bootstrap_servers=kafka, namespace=cli.environment["MILLSTREAM_NAMESPACE"])) as states:

            def published() -> bool:
                states.update(0.2)
                return [b.state for b in states.batches().values()] == [PUBLISHED]

            wait_until(published, 120, "the batch")
    rows = sum(len(json.loads((FIXTURES / f"{name}.json").read_text())["rows"]) for name in FILES.values())
    code, found = verified(cli, at)
    assert (code, len(found)) == (0, 2)
    assert (found["Parquet"]["rows"], found["Parquet"]["held"], found["topic"]["rows"]) == (rows, rows, rows)

    (directory,) = (out / "c").iterdir()
    path = directory / "a-1.parquet"
    table = pq.read_table(path)
    keys = [f"a:1 db {row['db']} {row['key'].decode()}" for row in table.select(["db", "key"]).slice(0, 2).to_pylist()]
    sizes = table["rdb_size"].to_pylist()
    spoilt = table.set_column(7, PARQUET_SIZE, pa.array([sizes[0], sizes[1] + 1, *sizes[2:]], pa.int64()))
    pq.write_table(spoilt.slice(1), path)
    clickhouse(engine, "DELETE FROM d.redis_records_raw WHERE instance = 'b:1' AND db = 0 AND key = 'str:raw'")
    gone = clickhouse(engine, "SELECT count() FROM d.redis_records_raw WHERE instance = 'b:1'")
    code, found = verified(cli, at)
    assert code == 3
    assert (found["Parquet"]["extra"], found["Parquet"]["stale"]) == ([keys[0]], [keys[1]])
    assert len(found["Parquet"]["missing"]) == found["Parquet"]["rows"] - int(gone[0][0]) - len(sizes) + 1
    only = cli.here("verify", "batch", "c", at, CLICKHOUSE_URL="none")
    assert (only.exit_code, "topic (source), Parquet (sink): stale: 1: a:1" in only.stdout) == (3, True)
    path.write_bytes(b"PAR1 nothing")
    damaged = cli.here("verify", "batch", "c", at, CLICKHOUSE_URL="none")
    assert (damaged.exit_code, f"{path}" in damaged.stderr) == (1, True)
    nothing = cli.here("verify", "batch", "c", "2026-01-01T00:00:00Z", CLICKHOUSE_URL="none")
    assert (nothing.exit_code, "there is no batch 2026-01-01T00:00:00.000000000Z" in nothing.stderr) == (1, True)
    assert cli.here("verify", "batch", "c", "yesterday").exit_code == 2


PARQUET_SIZE = pa.field("rdb_size", pa.int64(), nullable=False)
