"""The generic stream under attack, put together: topics, table, workers, records, and the verdict at the end."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from tests.chaos.check import Verdict, bad
from tests.chaos.feeding import Feeder
from tests.chaos.fleet import PATIENCE, ROOT, Fleet
from tests.chaos.group import Group
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.kafka import create_topic
from tests.support.waiting import wait_until

EVENTS = (
    "CREATE TABLE {db}.events (id Int64, k String, _topic LowCardinality(String), _partition Int32, _offset Int64)"
    " ENGINE = MergeTree ORDER BY (_topic, _partition, _offset) SETTINGS non_replicated_deduplication_window = 1000"
)


def database(server: ClickHouseServer, name: str, *statements: str) -> str:
    """Make a database; returns the URL for the sink."""
    url = server.url(name)
    for sql in ("CREATE DATABASE {db}", *statements):
        body = sql.replace("{db}", f"`{name}`").encode()
        urllib.request.urlopen(urllib.request.Request(url.partition("?")[0] + "/", data=body), timeout=60).close()
    return url


def verdict(*arguments: object) -> dict[str, Verdict]:
    """Run the checker, a program of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.check", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    found: dict[str, Verdict] = json.loads(done.stdout)
    print("chaos:", done.stdout.strip(), flush=True)
    assert (done.returncode == 0) == (bad(found) == 0)
    return found


class StreamScenario:
    """One application, its records and its workers. Without `server` only Parquet is written."""

    def __init__(
        self,
        kafka: str,
        home: Path,
        name: str,
        seed: int,
        server: ClickHouseServer | None = None,
        *,
        partitions: int = 4,
        rate: float = 200.0,
        control: str = "",
        **settings: Any,
    ) -> None:
        self.kafka, self.name, self.parquet = kafka, name, home / "parquet"
        admin = AdminClient({"bootstrap.servers": kafka})
        create_topic(admin, f"{name}-in", partitions)
        values: dict[str, Any] = {"BOOTSTRAP_SERVERS": kafka, "APP_ID": name, "PARQUET_DIR": self.parquet} | settings
        self.url: str | None = None
        if server is not None:
            self.url = values["CLICKHOUSE_URL"] = database(server, name.replace("-", "_"), EVENTS)
            values["CLICKHOUSE_AUTO_CREATE_TABLES"] = "true"
        self.fleet = Fleet(home, "tests.chaos.stream_app", seed, **values)
        self.fleet.env |= {"CHAOS_PARTITIONS": str(partitions), "CHAOS_CONTROL": control}
        self.group = Group(kafka, name)
        self.source = [TopicPartition(f"{name}-in", p) for p in range(partitions)]
        self.feeder = Feeder(kafka, f"{name}-in", partitions, seed, rate)

    def ends(self) -> dict[tuple[str, int], int]:
        """Where the input ends now."""
        return self.group.ends(self.source)

    def drain(self, timeout: float = PATIENCE * 1.5) -> None:
        """Until all input is committed and no chunk is open. Dead workers are started again, nothing armed."""
        lag = ""

        def look() -> bool:
            nonlocal lag
            for slot, worker in list(self.fleet.workers.items()):
                if worker.code is not None:
                    self.fleet.spawn(slot)
            lag = self.group.lag(self.source)
            return not lag

        try:
            wait_until(look, timeout, "all input committed", every=0.3)
        except AssertionError as exc:
            raise AssertionError(f"{exc} ({lag}; seed {self.fleet.seed}); {self.fleet.failures()}") from exc

    def verdict(self, *more: str) -> dict[str, Verdict]:
        """What the checker says."""
        arguments: list[object] = ["stream", "--kafka", self.kafka, "--name", self.name, "--parquet", self.parquet]
        return verdict(*arguments, *more, *(["--clickhouse", self.url] if self.url else []))

    def assert_exact(self) -> dict[str, Verdict]:
        """AssertionError with the seed if anything is missing, doubled or wrong."""
        found = self.verdict()
        assert bad(found) == 0, f"seed {self.fleet.seed}, logs {self.fleet.home}: {found}"
        return found

    def __enter__(self) -> Self:
        self.fleet.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.fleet.__exit__(kind, error, tb)
        self.group.close()
