"""The job under attack: RDB files through feeders, archive and coordinator into published batches in both sinks."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from schemas.batch import Batch
from tests.chaos.check import Verdict, bad, check_batches
from tests.chaos.dumps import write_rdb
from tests.chaos.fleet import PATIENCE, Fleet, Worker
from tests.chaos.group import Group
from tests.chaos.scenario import database, verdict
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.waiting import wait_until

CLUSTER = "chaos"
INSTANCES = {"10.0.0.1:6379": 700, "10.0.0.2:6379": 250, "10.0.0.3:6379": 0}
"""Instance -> keys."""


class JobScenario:
    """Two sinks, some batches, and their workers."""

    def __init__(
        self,
        kafka: str,
        home: Path,
        name: str,
        seed: int,
        server: ClickHouseServer,
        keys: Mapping[str, int] = INSTANCES,
        **settings: Any,
    ) -> None:
        home.mkdir(parents=True)
        self.name, self._keys = name, keys
        self.group = Group(kafka, f"{name}.millstream")
        self.parquet, self._expected = home / "parquet", home / "expected.json"
        self.url = database(server, name.replace("-", "_"))
        values: dict[str, Any] = {
            "BOOTSTRAP_SERVERS": kafka,
            "NAMESPACE": f"{name}.",
            "PARQUET_DIR": self.parquet,
            "PARQUET_SORT": "true",
            "CLICKHOUSE_URL": self.url,
            "CLICKHOUSE_AUTO_CREATE_TABLES": "true",
            "CHUNK_MAX_ROWS": "200",
        }
        self.fleet = Fleet(home, "streams", seed, **values | settings)
        self._random = random.Random(seed)
        self._first = time.time_ns() // 10**9 * 10**9
        self.batches: list[dict[str, Any]] = []

    def new_batch(self) -> list[dict[str, Any]]:
        """Write the files of one more batch; the jobs of its feeder."""
        number = len(self.batches)
        batch = Batch(CLUSTER, self._first + number * 1_000_000_000)
        contents, jobs = {}, []
        for instance, keys in self._keys.items():
            path = self.fleet.home / f"{number}-{instance}.rdb"
            contents[instance] = write_rdb(path, keys, self._random)
            jobs.append(
                {
                    "path": str(path),
                    "cluster": CLUSTER,
                    "instance": instance,
                    "batch_ts": batch.batch_ts,
                    "instances": list(self._keys),
                }
            )
        self.batches.append({"cluster": CLUSTER, "batch": batch.rfc3339, "slug": batch.slug, "instances": contents})
        self._expected.write_text(json.dumps(self.batches))
        return jobs

    def rewrite(self, job: dict[str, Any]) -> None:
        """Other keys in the file of the last batch's job, to be fed as a new run."""
        rows = write_rdb(Path(job["path"]), self._keys[job["instance"]], self._random)
        self.batches[-1]["instances"][job["instance"]] = rows
        self._expected.write_text(json.dumps(self.batches))
        job["new_run"] = True

    def feed(self, jobs: list[dict[str, Any]], failpoints: str = "") -> Worker:
        """Start a feeder."""
        command = [sys.executable, "-m", "tests.chaos.feed"]
        return self.fleet.run("feeder", command, failpoints, json.dumps(jobs).encode())

    def pending(self) -> int:
        """Batches that are not to be seen on disk yet."""
        return sum(not (self.parquet / b["cluster"] / b["slug"]).exists() for b in self.batches)

    def published(self) -> bool:
        """All batches so far are visible in both sinks, and nothing is left beside them."""
        names = ("parquet directories", "parquet staging", "clickhouse markers")
        found = check_batches(self._expected, self.parquet, self.url)
        return not any(bad({name: found[name] | {"rows": 1}}) for name in names)

    def drain(self, timeout: float = PATIENCE * 1.5) -> None:
        """Until everything is published. Dead workers are started again, nothing armed."""

        def look() -> bool:
            for slot, worker in list(self.fleet.workers.items()):
                if worker.code is not None:
                    self.fleet.spawn(slot)
            return self.published()

        try:
            wait_until(look, timeout, "all batches published", every=1)
        except AssertionError as exc:
            found = check_batches(self._expected, self.parquet, self.url)
            raise AssertionError(f"{exc}; seed {self.fleet.seed}; {found}; {self.fleet.failures()}") from exc

    def assert_exact(self) -> dict[str, Verdict]:
        """AssertionError with the seed if anything is missing, doubled or wrong."""
        found = verdict("batches", "--expected", self._expected, "--parquet", self.parquet, "--clickhouse", self.url)
        assert bad(found) == 0, f"seed {self.fleet.seed}, logs {self.fleet.home}: {found}"
        return found

    def __enter__(self) -> Self:
        self.fleet.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.fleet.__exit__(kind, error, tb)
        self.group.close()
