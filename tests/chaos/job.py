"""The job under attack: RDB files through feeders, archive and coordinator into published batches in both sinks."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from schemas.batch import Batch
from tests.chaos.check import bad, check_batches
from tests.chaos.dumps import write_rdb
from tests.chaos.fleet import PATIENCE, Fleet, Worker
from tests.chaos.group import Group
from tests.chaos.scenario import Scenario, database
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.waiting import wait_until

CLUSTER = "chaos"
INSTANCES = {"10.0.0.1:6379": 700, "10.0.0.2:6379": 250, "10.0.0.3:6379": 0}
"""Instance -> keys."""
BACKLOG = 2
"""Batches that may wait; more would only keep the machine busy."""


class JobScenario(Scenario):
    """Two sinks, some batches, and their workers."""

    kinds = ("parquet batches", "clickhouse batches", "table", "topic")

    def __init__(
        self,
        kafka: str,
        home: Path,
        name: str,
        seed: int,
        server: ClickHouseServer,
        keys: Mapping[str, int] = INSTANCES,
        pace: str = "short",
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
        self.fleet = Fleet(home, "streams", seed, pace, **values | settings)
        self._random = random.Random(seed)
        self._first = time.time_ns() // 10**9 * 10**9
        self.batches: list[dict[str, Any]] = []
        self._jobs: list[dict[str, Any]] = []
        self.feeder: Worker | None = None
        self.on_feeder_death: Callable[[str], None] = lambda _failpoint: None
        self.arm_feeder: Callable[[], str] = lambda: ""

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
        return self.fleet.run("feeder", "tests.chaos.feed", (), failpoints, json.dumps(jobs).encode())

    def pending(self) -> int:
        """Batches that are not to be seen on disk yet."""
        return sum(not (self.parquet / b["cluster"] / b["slug"]).exists() for b in self.batches)

    def published(self) -> bool:
        """All batches so far are visible in both sinks, and nothing is left beside them."""
        return not self.unfinished()

    def unfinished(self) -> str:
        """What is not published, or left beside it."""
        names = ("parquet directories", "parquet staging", "clickhouse markers")
        found = check_batches(self._expected, self.parquet, self.url)
        return ", ".join(f"{name}: {found[name]}" for name in names if bad({name: found[name] | {"rows": 1}}))

    def tick(self) -> None:
        """Feed batch after batch; a dead feeder is started again, in every other batch as a new run."""
        if self.feeder is None or self.feeder.code == 0:
            if self.pending() <= BACKLOG:
                self._jobs = self.new_batch()
                self.feeder = self.feed(self._jobs, self.arm_feeder())
        elif self.feeder.code is not None:
            if (failpoint := self.fleet.killed_by(self.feeder)) is not None:
                self.on_feeder_death(failpoint)
            # 1: the broker was away. A resumed feeder may die again.
            assert self.feeder.code in (-signal.SIGKILL, 1), f"seed {self.fleet.seed}: {self.feeder.report()}"
            self._jobs[0]["new_run"] = len(self.batches) % 2 == 0  # not to be resumed: voids what was fed (hole e)
            self.feeder = self.feed(self._jobs, self.arm_feeder())

    def finish_input(self) -> None:
        """The last feeder ends in order."""
        self.arm_feeder = lambda: ""

        def fed() -> bool:
            if self.feeder is not None and self.feeder.code == 0:
                return True
            self.tick()
            return False

        wait_until(fed, PATIENCE, "the feeder to end", every=0.1)

    def close(self) -> None:
        """Its feeder ends too."""
        if self.feeder is not None:
            self.feeder.kill()
        super().close()

    def check_arguments(self) -> list[object]:
        """Both sinks."""
        return ["batches", "--expected", self._expected, "--parquet", self.parquet, "--clickhouse", self.url]
