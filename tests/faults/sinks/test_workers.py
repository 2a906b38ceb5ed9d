"""Real workers on a real Kafka while their sinks fail; the verdict is that of tests/chaos/check.py."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from tests.chaos.check import Verdict, bad, check_batches, rows_of
from tests.chaos.feeding import Feeder
from tests.chaos.fleet import PATIENCE, Fleet
from tests.chaos.forks import ROOT
from tests.chaos.group import Group
from tests.chaos.job import JobScenario
from tests.chaos.proof import append
from tests.chaos.scenario import database
from tests.chaos.stream import EVENTS, StreamScenario
from tests.conftest import Unique
from tests.faults.sinks.conftest import MakeDisk
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.kafka import create_topic, read_all
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ClickHouseServer]:
    """One of our own: its faults must hit nobody else."""
    with ClickHouseServer(tmp_path / "clickhouse") as running:
        yield running


def _verdict(*arguments: object) -> dict[str, Verdict]:
    command = [sys.executable, "-m", "tests.chaos.check", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout, done.stderr
    found: dict[str, Verdict] = json.loads(done.stdout)
    return found


def _record(attack: str, fleet: Fleet, found: object) -> None:
    if os.environ.get("CHAOS_RECORD"):
        hits = dict(sorted(fleet.hits().items()))
        append("faults.jsonl", attack=attack, seed=fleet.seed, lives=fleet.lives, hits=hits, verdict=found)


# ---------------------------------------------------------------------- the disk
def test_a_full_disk_ends_the_worker_with_path_and_free_space_and_all_is_there_once_there_is_room(
    kafka: str, tmp_path: Path, small_disk: MakeDisk, unique: Unique, seed: int
) -> None:
    # T43
    disk, name = small_disk("4m"), unique("full")
    with StreamScenario(
        kafka, tmp_path / "home", name, seed, partitions=2, PARQUET_DIR=disk.path / "out", pace="quick"
    ) as s:
        s.parquet = disk.path / "out"
        s.feeder.send(500)
        s.fleet.spawn("a")
        s.group.wait_past(s.ends(), PATIENCE)
        disk.fill()
        s.feeder.send(1_500)
        worker = s.fleet.workers["a"]
        assert worker.wait() == 70, worker.tail()
        said = worker.log.read_text()
        assert f"{disk.path}/out/{name}-in/" in said
        assert "No space left on device" in said
        assert "bytes and" in said
        assert "What to do: free space there" in said
        assert "Traceback" not in said
        disk.empty()
        s.drain()
        assert list(s.parquet.rglob("*.tmp")) == []
        _record("full disk", s.fleet, s.assert_exact())


# ---------------------------------------------------------------------- ClickHouse
MODES = ["error", "error_after", "drop_before", "drop_after", "half_header", "exception_200", "exception_200_after",
         "hang_running", "hang", "quiet", "swallow"]  # fmt: skip


@pytest.mark.parametrize("rounds", [12, pytest.param(150, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])])
def test_a_stream_is_exact_after_every_fault_of_its_server(
    kafka: str, tmp_path: Path, server: ClickHouseServer, unique: Unique, seed: int, rounds: int
) -> None:
    rng = random.Random(seed)
    with StreamScenario(
        kafka, tmp_path / "home", unique("faulty"), seed, server, partitions=2, rate=400, CLICKHOUSE_TIMEOUT="1.5"
    ) as s:
        fleet = s.fleet
        fleet.spawn("a")
        fleet.spawn("b")
        s.feeder.start()
        deck: list[str] = []
        for n in range(rounds):
            deck = deck or rng.sample(MODES, len(MODES))
            mode = deck.pop()
            server.fault(mode, code=rng.choice([0, 159, 241, 252]), status=rng.choice([500, 503]))
            before = len(server.statements())
            wait_until(lambda b=before: len(server.statements()) > b + 3, PATIENCE, f"statements after {mode}")
            if n % 4 == 3:
                server.release()
        server.release()
        s.finish_input()
        server.fault("none")
        s.drain()
        server.release()
        found = s.assert_exact()
        assert {w.code for w in fleet.workers.values()} == {None}, fleet.failures()  # all of it is to be retried
        _record(f"server faults x{rounds}", fleet, found)


@pytest.mark.parametrize("deaths", [1, pytest.param(12, marks=pytest.mark.faults)])
def test_a_stream_is_exact_after_its_server_died_between_token_and_part(
    kafka: str, tmp_path: Path, unique: Unique, seed: int, deaths: int
) -> None:
    # hole a: the engine raises the attempt in a fenced transaction, and only then
    path = tmp_path / "clickhouse"
    server = ClickHouseServer(path)
    try:
        with StreamScenario(kafka, tmp_path / "home", unique("token"), seed, server, partitions=2, rate=100) as s:
            s.fleet.spawn("a")
            s.feeder.start()
            for _ in range(deaths):
                server.statements(clear=True)
                wait_until(server.statements, PATIENCE, "inserts")
                server.fault("die_at_rename")
                wait_until(lambda dying=server: not dying.alive, PATIENCE, "the server's death")
                server.stop()
                server = ClickHouseServer(path, "", server.port)
            s.finish_input()
            s.drain()
            assert s.fleet.workers["a"].code is None
            assert "attempt_raised" in s.fleet.workers["a"].log.read_text()
            _record(f"died between token and part x{deaths}", s.fleet, s.assert_exact())
    finally:
        server.stop()


def test_two_topics_on_one_clickhouse_table_and_one_table_of_ours_are_exact_after_deaths(
    kafka: str, tmp_path: Path, server: ClickHouseServer, unique: Unique, seed: int
) -> None:
    # hole d; equal offsets of both topics are told apart by _topic and by the log's id in the token
    name = unique("both")
    url = database(server, name.replace("-", "_"), EVENTS)
    admin = AdminClient({"bootstrap.servers": kafka})
    topics = [f"{name}-{n}" for n in ("one", "two")]
    for topic in topics:
        create_topic(admin, f"{topic}-in", 2)
    values = {"BOOTSTRAP_SERVERS": kafka, "APP_ID": name, "CLICKHOUSE_URL": url}
    feeders = [Feeder(kafka, f"{topic}-in", 2, seed) for topic in topics]
    group = Group(kafka, name)
    source = [TopicPartition(f"{topic}-in", p) for topic in topics for p in range(2)]
    points = ["cycle.written", "clickhouse.insert.after", "txn.committed", "load.restored"]
    fleet = Fleet(tmp_path / "home", "tests.faults.sinks.two_topics_app", seed, "quick", **values)
    try:

        def walked() -> bool:
            for feeder in feeders:
                feeder.send(20)
            return fleet.walk(points)

        wait_until(walked, PATIENCE * 2, "every failpoint", every=0.3)

        def drained() -> bool:
            for slot, worker in list(fleet.workers.items()):
                if worker.code is not None:
                    fleet.spawn(slot)
            return not group.lag(source)

        wait_until(drained, PATIENCE * 1.5, "all input committed", every=0.3)
        found = {}
        for topic in topics:
            part = _verdict("stream", "--kafka", kafka, "--name", topic, "--clickhouse", url, "--kinds", "clickhouse")
            assert bad(part) == 0, f"seed {seed}, logs {fleet.home}: {part}"
            found |= {f"{topic}: {k}": v for k, v in part.items()}
        fed = [m for topic in topics for m in read_all(kafka, f"{topic}-in")]
        assert [int(r["n"]) for r in rows_of(url, "SELECT toInt32(count()) AS n FROM {db}.events")] == [len(fed)]
        expected = Counter(json.loads(m.value() or b"")["k"] for m in fed)
        changes = read_all(kafka, f"{name}-counts-changelog")
        table = {json.loads(m.key() or b""): json.loads(m.value() or b"") for m in changes}
        assert table == expected, f"seed {seed}, logs {fleet.home}"
        _record("two topics on one table", fleet, found)
    finally:
        fleet.kill()
        group.close()


# ---------------------------------------------------------------------- a run that begins too late
@pytest.mark.parametrize(
    "point",
    ["clickhouse.finalize.closed", pytest.param("clickhouse.finalize.before_marker", marks=pytest.mark.faults)],
)
def test_a_new_run_that_begins_while_its_batch_is_being_published_into_clickhouse_leaves_nothing_in_it(
    kafka: str, tmp_path: Path, server: ClickHouseServer, unique: Unique, seed: int, point: str
) -> None:
    keys = {"10.0.0.1:6379": 300, "10.0.0.2:6379": 300}
    with JobScenario(kafka, tmp_path / "home", unique("late"), seed, server, keys) as job:
        fleet = job.fleet
        del fleet.env["MILLSTREAM_PARQUET_DIR"]  # it would refuse the run first
        coordinator = fleet.spawn("a", f"{point}=stop1", STREAMS="streams.batches")
        archive = fleet.spawn("b", STREAMS="streams.archive")
        jobs = job.new_batch()
        assert job.feed(jobs).wait() == 0
        coordinator.wait_stopped()
        # other content for an instance whose batch is half published, by a feeder that knows nothing of that
        published = json.dumps(job.batches)
        job.rewrite(jobs[0])
        assert job.feed(jobs[:1]).wait() == 0
        archive.wait_log("run_skipped")
        coordinator.signal(signal.SIGCONT)
        expected = tmp_path / "published.json"
        expected.write_text(published)

        def exact() -> bool:
            for slot, streams in (("a", "streams.batches"), ("b", "streams.archive")):
                if fleet.workers[slot].code is not None:
                    fleet.spawn(slot, STREAMS=streams)
            return bad(check_batches(expected, None, job.url)) == 0

        wait_until(exact, PATIENCE, "the first run to be published", every=0.5)
        codes = fleet.terminate()
        assert set(codes.values()) <= {0, 70}, fleet.failures()
        found = _verdict("batches", "--expected", expected, "--clickhouse", job.url)
        assert bad(found) == 0, f"seed {seed}, logs {fleet.home}: {found}"
        _record(f"late run at {point}", fleet, found)
