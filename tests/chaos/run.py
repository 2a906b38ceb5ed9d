"""The long random run: `make chaos [CHAOS_MINUTES=10] [CHAOS_SEED=n]`.

Rounds of the generic stream and of the job in turn, each with a seed of its own drawn from the run's; after each round
the workers are started once more, unharmed, and the checker decides. One JSON line goes to docs/proof/chaos.jsonl.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from millstream.broker import EmbeddedBroker
from tests.chaos import failpoints
from tests.chaos.check import Verdict
from tests.chaos.job import JobScenario
from tests.chaos.proof import append
from tests.chaos.scenario import StreamScenario
from tests.chaos.storm import Storm
from tests.support.clickhouse_server import ClickHouseServer

ROUND_SECONDS = 120.0
TICK = 0.05


class Run:
    """One run: its broker, its ClickHouse, its totals."""

    def __init__(self, home: Path, seed: int, broker: EmbeddedBroker, server: ClickHouseServer) -> None:
        self._home, self._seed, self._broker, self._server = home, seed, broker, server
        self.totals: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()

    def stream_round(self, number: int, seed: int, until: float) -> None:
        """The generic stream."""
        name, home = f"stream-{self._seed}-{number}", self._home / f"{number}-stream"
        with StreamScenario(self._broker.bootstrap_servers, home, name, seed, self._server, rate=150) as scenario:
            storm = Storm(scenario.fleet, failpoints.of_stream(), self._kill_broker)
            scenario.feeder.start()
            while time.monotonic() < until:
                storm.tick()
                time.sleep(TICK)
            storm.end()
            scenario.feeder.stop()
            scenario.fleet.spawn("a")
            scenario.fleet.spawn("b")
            scenario.drain(300)
            self._add(scenario, storm, scenario.assert_exact(), scenario.fleet.terminate())

    def job_round(self, number: int, seed: int, until: float) -> None:
        """RDB files into both sinks."""
        name, home = f"job-{self._seed}-{number}", self._home / f"{number}-job"
        with JobScenario(self._broker.bootstrap_servers, home, name, seed, self._server) as job:
            names = sorted({n for n in failpoints.of_stream() if "+" not in n} | set(failpoints.of_job()))
            storm, feeder = Storm(job.fleet, names, self._kill_broker), None
            armed = ",".join(f"{n}=kill:0.05" for n in failpoints.of_feeder())
            jobs: list[dict[str, Any]] = []
            while time.monotonic() < until or feeder is None or feeder.code != 0:
                storm.tick()
                if feeder is None or feeder.code == 0:
                    jobs = job.new_batch()
                    feeder = job.feed(jobs, armed)
                elif feeder.code is not None:
                    self.totals["feeder deaths"] += 1
                    # 1: the broker was away. A resumed feeder may die again; a new run voids what was fed.
                    assert feeder.code in (-signal.SIGKILL, 1), f"seed {seed}: {feeder}: {feeder.tail()}"
                    jobs[0]["new_run"] = job.fleet.random.random() < 0.2
                    feeder = job.feed(jobs, armed)
                time.sleep(TICK)
            storm.end()
            job.fleet.spawn("a")
            job.fleet.spawn("b")
            job.drain(300)
            self._add(job, storm, job.assert_exact(), job.fleet.terminate())
            self.totals["batches"] += len(job.batches)

    def _kill_broker(self) -> None:
        self._broker.kill()
        self._broker.start()

    def _add(
        self,
        scenario: StreamScenario | JobScenario,
        storm: Storm,
        verdict: dict[str, Verdict],
        ends: dict[str, int],
    ) -> None:
        assert set(ends.values()) <= {0, -signal.SIGKILL}, ends
        self.totals += storm.counts
        self.totals["lives"] += scenario.fleet.lives
        self.totals["rows"] += verdict["parquet"]["rows"]
        self.hits += scenario.fleet.hits()
        self.codes += Counter({str(code): n for code, n in scenario.fleet.codes.items()})


def main() -> int:
    """Exit code 0 if every round was exact."""
    minutes, seed = float(os.environ.get("CHAOS_MINUTES", "10")), int(os.environ.get("CHAOS_SEED") or time.time())
    home = Path(tempfile.mkdtemp(prefix="millstream-chaos-"))
    print(f"chaos: {minutes:g} minutes, CHAOS_SEED={seed}, logs {home}", flush=True)
    rng, started = Random(seed), time.monotonic()
    end, number, result = started + minutes * 60, 0, "exact"
    with EmbeddedBroker(home / "kafka") as broker, ClickHouseServer(home / "clickhouse") as server:
        run = Run(home, seed, broker, server)
        try:
            while number == 0 or time.monotonic() + 30 < end:
                kind = (run.stream_round, run.job_round)[number % 2]
                kind(number, rng.randrange(1, 10**9), min(end, time.monotonic() + ROUND_SECONDS))
                number += 1
        except AssertionError as exc:
            result = f"BAD: round {number}: {exc}"[:2000]
    line = append(
        "chaos.jsonl",
        seed=seed,
        minutes=round((time.monotonic() - started) / 60, 1),
        rounds=number,
        **run.totals,
        codes=run.codes,
        hits=dict(sorted(run.hits.items())),
        result=result,
    )
    print(json.dumps(line, indent=1), flush=True)
    return int(result != "exact")


if __name__ == "__main__":
    sys.exit(main())
