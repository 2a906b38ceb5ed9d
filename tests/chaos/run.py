"""The long random run: `make chaos [CHAOS_MINUTES=10] [CHAOS_SEED=n] [CHAOS_ROUND=n]`.

Round after round, each drawn from the run's seed and its own number: a few applications are attacked at the same time
on one broker, then all of their workers are started once more, unharmed, and the checker decides about each. A finding
ends its application only; its logs, topics and files stay. The line of the run in docs/proof/chaos.jsonl is brought up
to date after every round. Exit code 0 if every application was exact.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from millstream.broker import EmbeddedBroker
from millstream.cluster import Cluster
from millstream.errors import BrokerError
from millstream.postgres import EmbeddedPostgres
from tests.chaos import failpoints, forks
from tests.chaos.job import JobScenario
from tests.chaos.projection import ProjectionScenario
from tests.chaos.proof import Line
from tests.chaos.scenario import Scenario, statement
from tests.chaos.storm import Storm
from tests.chaos.stream import KINDS, PAYLOADS, StreamScenario
from tests.chaos.tally import Tally
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.postgres import drop_database

ROUND_SECONDS, SHORTEST_SECONDS = 120.0, 30.0
SETTLE_SECONDS = 30.0
"""About what it takes to let everything come out and to check it."""
DRAIN_SECONDS = 300.0
PLAIN_SECONDS = 60.0
"""Shorter rounds have no stream with default timeouts: its first dead worker would outlast the round."""
PATIENT_SECONDS = 300.0
"""A round that has to see something is not longer than this."""
TICK = 0.03
CONTROL = os.environ.get("CHAOS_CONTROL", "")
"""Of the streams, see controls.py: such a run must end with findings."""
PACES = ("quick", "quick", "quick", "short")


@dataclass
class Group:
    """One application of a round."""

    name: str
    seed: int
    scenario: Scenario
    storm: Storm

    def tick(self) -> None:
        """Keep it fed and attacked. AssertionError: a process ended in a way that nothing explains."""
        self.scenario.tick()
        self.storm.tick()

    def settle(self) -> int:
        """Unharmed to the end; rows that came out. AssertionError unless it is exact and its workers end in order."""
        fleet = self.scenario.fleet
        self.storm.end()
        self.scenario.finish_input()
        for slot in self.storm.slots:
            fleet.spawn(slot)
        self.scenario.drain(DRAIN_SECONDS)
        for slot, code in fleet.terminate().items():
            # The latter: told to stop before it listened to signals.
            assert code in (0, -signal.SIGTERM), f"seed {fleet.seed}: {fleet.workers[slot].report()}"
        found = self.scenario.assert_exact()
        return sum(found[kind]["rows"] for kind in found if kind != "input")


class Run:
    """One run: its broker, its ClickHouse, its Postgres (a URL), its totals. `close` it."""

    def __init__(
        self, home: Path, seed: int, broker: EmbeddedBroker, server: ClickHouseServer, postgres: str = ""
    ) -> None:
        self._postgres = postgres
        self._home, self._seed, self._broker, self._server = home, seed, broker, server
        self._cluster = Cluster({"bootstrap.servers": broker.bootstrap_servers})
        # Not one pool a round: a process that a thread started ends with the thread.
        self._pool = ThreadPoolExecutor(8, "settle")
        self.tally = Tally()
        self.findings: list[dict[str, Any]] = []

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def round(self, number: int, seconds: float, seen: Sequence[str] = ()) -> None:
        """Attack a few applications for so long, and until the counts named in `seen` are there, then let everything
        come out and judge."""
        rng = Random(f"{self._seed}/{number}")
        groups = self._draw(number, rng, long=seconds > PLAIN_SECONDS)
        blows = sorted(rng.uniform(5, seconds) for _ in range(rng.choice((0, 0, 1, 2))))
        try:
            self._attack(groups, blows, seconds, seen)
            for group, settled in [(g, self._pool.submit(g.settle)) for g in groups]:
                if self._guarded(group, settled.result):
                    self.tally.counts["rows"] += settled.result()
                    self.tally.counts["applications exact"] += 1
                    self._guarded(group, partial(self._forget, group))
        finally:
            for group in groups:
                group.scenario.close()

    def _attack(self, groups: list[Group], blows: list[float], seconds: float, seen: Sequence[str]) -> None:
        """Takes those out of `groups` that something was found in."""
        began = time.monotonic()
        while (now := time.monotonic() - began) < seconds or (
            now < PATIENT_SECONDS and not all(self.tally.counts[name] for name in seen)
        ):
            if blows and now > blows[0]:
                del blows[0]
                self._restart_broker()
            groups[:] = [g for g in groups if self._guarded(g, g.tick)]
            time.sleep(TICK)
        self.tally.counts["attacked seconds"] += round(now)

    # ------------------------------------------------------------------ drawing
    def _draw(self, number: int, rng: Random, *, long: bool) -> list[Group]:
        """Streams with each payload, one of them with some kinds of output only, and jobs; in long rounds projections
        (where there is a Postgres), and now and then a stream with every setting as it is by default."""
        start = f"chaos-{self._seed}-{number}"
        some = sorted(rng.sample(KINDS, rng.randint(1, len(KINDS) - 1)))
        streams = [("json", KINDS), ("arrow", KINDS), (rng.choice(PAYLOADS), some)]
        groups = [
            self._stream(f"{start}-s{n}", rng, p, rng.choice(PACES), kinds) for n, (p, kinds) in enumerate(streams)
        ]
        groups += [self._job(f"{start}-j{n}", rng, rng.choice(PACES)) for n in range(2)]
        if long and rng.random() < 0.3:
            groups.append(self._stream(f"{start}-plain", rng, rng.choice(PAYLOADS), "plain", KINDS))
        if long and self._postgres:
            groups += [self._projection(f"{start}-p{n}", rng, rng.choice(PACES)) for n in range(2)]
        return groups

    def _stream(self, name: str, rng: Random, payload: str, pace: str, kinds: Sequence[str]) -> Group:
        seed = rng.randrange(1, 10**9)
        kafka, rate = self._broker.bootstrap_servers, 40.0 if payload == "arrow" else 120.0
        drawn: dict[str, Any] = {"kinds": kinds, "payload": payload, "rate": rate, "pace": pace, "control": CONTROL}
        scenario = StreamScenario(kafka, self._home / name, name, seed, self._server, **drawn)
        # Only the failpoints of the sinks that it has.
        absent = tuple(f"{kind}." for kind in KINDS if kind not in kinds)
        names = [n for n in failpoints.of_stream() if not n.startswith(absent)]
        return self._group(name, seed, scenario, names, rng)

    def _job(self, name: str, rng: Random, pace: str) -> Group:
        seed = rng.randrange(1, 10**9)
        job = JobScenario(self._broker.bootstrap_servers, self._home / name, name, seed, self._server, pace=pace)
        feeding = failpoints.of_feeder()
        job.arm_feeder = lambda: ",".join(f"{n}=kill:0.03" for n in feeding)
        job.on_feeder_death = self.tally.feeder_died_at
        names = sorted({n for n in failpoints.of_stream() if "+" not in n} | set(failpoints.of_job()))
        return self._group(name, seed, job, names, rng)

    def _projection(self, name: str, rng: Random, pace: str) -> Group:
        seed, kafka = rng.randrange(1, 10**9), self._broker.bootstrap_servers
        scenario = ProjectionScenario(kafka, self._home / name, name, seed, self._postgres, pace=pace)
        return self._group(name, seed, scenario, failpoints.of_projection(), rng)

    def _group(self, name: str, seed: int, scenario: Scenario, names: list[str], rng: Random) -> Group:
        workers, restless = rng.choice((1, 2, 2, 3)), rng.random() < 0.2
        self.tally.counts["applications"] += 1
        print(f"chaos: {name}: {workers} workers, {', '.join(scenario.kinds)}{', restless' * restless}", flush=True)
        return Group(name, seed, scenario, Storm(scenario, names, self.tally, workers, restless))

    # ------------------------------------------------------------------ doing
    def _restart_broker(self) -> None:
        self.tally.counts["broker kills"] += 1
        self._broker.kill()
        try:
            self._broker.start()
        except BrokerError as exc:
            print(f"chaos: the broker did not start again in time, once more: {exc}", flush=True)
            self._broker.start()

    def _guarded(self, group: Group, step: Callable[[], object]) -> bool:
        """False: a finding, and the end of the group. Its logs, topics and files stay."""
        try:
            step()
        except Exception as exc:  # noqa: BLE001 - an error of this harness must not cost the night either
            self.find(group.name, exc)
            group.scenario.close()
            return False
        return True

    def find(self, where: str, exc: Exception) -> None:
        """Something is not as it should be."""
        what = str(exc) if isinstance(exc, AssertionError) else "".join(traceback.format_exception(exc))
        print(f"chaos: FINDING in {where} (CHAOS_SEED={self._seed}): {what}", flush=True)
        self.findings.append({"application": where, "what": what[:1500]})

    def _forget(self, group: Group) -> None:
        """It was exact: a long run must not fill the disk."""
        group.scenario.close()
        shutil.rmtree(self._home / group.name)
        self._cluster.delete(self._cluster.matching(lambda topic: topic.startswith(group.name)))
        if isinstance(group.scenario, ProjectionScenario):
            drop_database(self._postgres, group.scenario.database)
        statement(self._server, f"DROP DATABASE IF EXISTS `{group.name.replace('-', '_')}`")


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Exit code 0 if all was exact."""
    minutes, seed = float(os.environ.get("CHAOS_MINUTES", "10")), int(os.environ.get("CHAOS_SEED") or time.time())
    first = number = int(os.environ.get("CHAOS_ROUND") or 0)
    home = Path(tempfile.mkdtemp(prefix="millstream-chaos-"))
    print(f"chaos: {minutes:g} minutes, CHAOS_SEED={seed}, logs {home}", flush=True)
    signal.signal(signal.SIGTERM, _interrupted)
    forks.shared()
    started, line = time.monotonic(), Line("chaos.jsonl")
    with (
        EmbeddedBroker(home / "kafka") as broker,
        ClickHouseServer(home / "clickhouse") as server,
        EmbeddedPostgres(home / "postgres", fsync="off") as postgres,
    ):
        run, state = Run(home, seed, broker, server, postgres.url), "broken off"

        def note() -> dict[str, Any]:
            result = f"{len(run.findings)} findings" if run.findings else "exact"
            return line.write(
                seed=seed,
                **({"control": CONTROL} if CONTROL else {}),
                first_round=first,
                minutes=round((time.monotonic() - started) / 60, 1),
                rounds=number - first,
                **run.tally.fields(),
                findings=run.findings,
                result=f"{result}{f' ({state})' if state else ''}",
            )

        try:
            while number == first or minutes * 60 - (time.monotonic() - started) > SHORTEST_SECONDS + SETTLE_SECONDS:
                left = minutes * 60 - (time.monotonic() - started) - SETTLE_SECONDS
                try:
                    run.round(number, max(SHORTEST_SECONDS, min(ROUND_SECONDS, left)))
                except Exception as exc:  # noqa: BLE001 - as above
                    run.find(f"round {number}", exc)
                number += 1
                state = "goes on"
                note()
            state = ""
        except KeyboardInterrupt:
            state = "interrupted"
        finally:
            print(json.dumps(note(), indent=1), flush=True)
            run.close()
    if not run.findings:
        shutil.rmtree(home)
    return int(bool(run.findings) or bool(state))


if __name__ == "__main__":
    sys.exit(main())
