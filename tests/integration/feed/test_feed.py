"""The feeder against a real broker: each row once, however often it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient

from bench.make_rdb import write_mixed
from millstream.errors import ConfigError
from millstream.failpoints import KNOWN
from millstream.settings import Settings
from schemas.control import BATCH, DATA, RUN, add_digest, label_of, read_body
from schemas.names import dlq_topic, records_topic
from sources.feed import FeedJob, FeedResult, feed_file
from sources.feeders import FeedError, feed_all
from sources.rdb import RdbReader
from tests.support.kafka import create_topic, read_all

INSTANCE = "10.0.0.1:6379"
BATCH_TS = 1_795_000_000_123_000_000
ROWS = 60_000


@pytest.fixture
def settings(kafka: str, namespace: str) -> Settings:
    return Settings(bootstrap_servers=kafka, namespace=namespace)


@pytest.fixture(scope="module")
def rdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rdb") / "a.rdb"
    write_mixed(path, ROWS, dbs=3)
    return path


def job(path: Path, instance: str = INSTANCE, **others: Any) -> FeedJob:
    fields = {"cluster": "c", "batch_ts": BATCH_TS, "instances": [instance]} | others
    return FeedJob(path=str(path), instance=instance, **fields)


def messages(settings: Settings, cluster: str = "c", instance: str = INSTANCE) -> list[Message]:
    assert settings.bootstrap_servers
    return read_all(settings.bootstrap_servers, records_topic(cluster, instance, settings.namespace))


def rows_of(found: list[Message]) -> pa.Table:
    tables = [
        pa.ipc.open_stream(m.value()).read_all() for m in found if dict(m.headers() or [])["millstream.kind"] == b"rows"
    ]
    return pa.concat_tables(tables)


def kinds(found: list[Message]) -> list[str]:
    return [dict(m.headers() or [])["millstream.kind"].decode() for m in found]


def assert_once(settings: Settings, path: Path) -> None:
    """The topic holds one run, in order, and exactly the file's rows, in the file's order."""
    found = messages(settings)
    assert kinds(found) == ["begin", *["rows"] * (len(found) - 2), "done"]
    assert len({dict(m.headers() or [])[RUN] for m in found}) == 1
    assert {dict(m.headers() or [])[BATCH] for m in found} == {job(path).batch.key.encode()}
    with path.open("rb") as file:
        expected = pa.Table.from_batches(list(RdbReader(file)))
    rows = rows_of(found)
    assert rows.num_rows == expected.num_rows == ROWS
    assert rows.select(["db", "key"]).equals(expected.select(["db", "key"]))
    done: Any = read_body("done", found[-1].value())
    data = [m for m in found if label_of(m.headers() or []).kind == DATA]
    assert (done.rows, done.messages, done.begin) == (ROWS, len(data), found[0].offset())
    assert done.digest == add_digest(0, [m.value() or b"" for m in data])
    assert sum(label_of(m.headers() or []).rows for m in data) == ROWS


def test_a_file_becomes_begin_rows_done(settings: Settings, rdb: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = feed_file(settings, job(rdb), lambda rows, at: seen.append((rows, at)))
    assert (result.outcome, result.rows, result.resumed) == ("fed", ROWS, False)
    assert seen[-1] == (ROWS, rdb.stat().st_size)
    assert_once(settings, rdb)


def test_a_file_that_was_fed_is_not_fed_again(settings: Settings, rdb: Path) -> None:
    first = feed_file(settings, job(rdb))
    again = feed_file(settings, job(rdb))
    assert (again.outcome, again.run, again.rows) == ("already", first.run, ROWS)
    assert_once(settings, rdb)


POINTS = ("feed.begun", "feed.rows_produced", "feed.before_commit", "feed.after_commit", "feed.done")


def test_all_failpoints_of_the_feeder_are_tried() -> None:
    assert set(POINTS) == {name for name in KNOWN if name.startswith("feed.")}


def feed_in_child(settings: Settings, path: Path, failpoints: str, seed: int) -> int:
    environment = os.environ | {
        "MILLSTREAM_BOOTSTRAP_SERVERS": str(settings.bootstrap_servers),
        "MILLSTREAM_NAMESPACE": settings.namespace,
        "MILLSTREAM_FAILPOINTS": failpoints,
        "MILLSTREAM_SEED": str(seed),
    }
    done = subprocess.run(
        [sys.executable, "-m", "sources.feeders"],
        input=msgspec.json.encode(job(path)) + b"\n",
        env=environment,
        capture_output=True,
        timeout=60,
    )
    return done.returncode


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_failpoint_and_started_again_it_feeds_each_row_once(
    point: str, settings: Settings, rdb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # hole e: with a transaction per message the kill lands in the middle of the file
    lives = 0
    for seed in range(1, 8):
        probability = 1 if lives == 0 and point != "feed.rows_produced" else 0.3
        code = feed_in_child(settings, rdb, f"{point}=kill:{probability}", seed)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        lives += 1
    assert lives >= 1, "the failpoint was never reached"
    result = feed_file(settings, job(rdb))
    assert result.outcome in ("fed", "already")
    assert_once(settings, rdb)


def test_a_paused_feeder_cannot_add_anything_after_its_successor_began(settings: Settings, rdb: Path) -> None:
    # T7 for feeders: the transactional id fences
    environment = os.environ | {
        "MILLSTREAM_BOOTSTRAP_SERVERS": str(settings.bootstrap_servers),
        "MILLSTREAM_NAMESPACE": settings.namespace,
        "MILLSTREAM_FAILPOINTS": "feed.before_commit=stop1",
    }
    zombie = subprocess.Popen(
        [sys.executable, "-m", "sources.feeders"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert zombie.stdin
    assert zombie.stdout
    zombie.stdin.write(msgspec.json.encode(job(rdb)) + b"\n")
    zombie.stdin.flush()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{zombie.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline, "the feeder never reached the failpoint"
        time.sleep(0.02)
    feed_file(settings, job(rdb))
    zombie.send_signal(signal.SIGCONT)
    said, _ = zombie.communicate(timeout=30)
    assert zombie.returncode == 1
    assert b"took over" in said
    assert_once(settings, rdb)


def test_another_file_under_the_same_batch_is_refused_by_both_names(
    settings: Settings, rdb: Path, tmp_path: Path
) -> None:
    other = tmp_path / "b.rdb"
    write_mixed(other, 10, seed=9)
    feed_file(settings, job(rdb))
    with pytest.raises(ConfigError, match=r"a\.rdb .*b\.rdb .*another file"):
        feed_file(settings, job(other))
    assert feed_file(settings, job(other, new_run=True)).rows == 10


def test_the_same_content_under_another_path_is_the_same_file(settings: Settings, rdb: Path, tmp_path: Path) -> None:
    feed_file(settings, job(rdb))
    copy = tmp_path / "copy.rdb"
    copy.write_bytes(rdb.read_bytes())
    assert feed_file(settings, job(copy)).outcome == "already"


def test_a_corrupt_file_aborts_its_run_and_a_mended_one_starts_a_new_run(
    settings: Settings, rdb: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.rdb"  # RU-68, T28
    broken.write_bytes(rdb.read_bytes()[:-100_000])
    result = feed_file(settings, job(broken))
    assert result.outcome == "aborted"
    assert "broken.rdb" in result.reason
    found = messages(settings)
    assert (kinds(found)[0], kinds(found)[-1]) == ("begin", "abort")
    body: Any = read_body("abort", found[-1].value())
    assert body.reason == result.reason
    mended = feed_file(settings, job(rdb))
    assert (mended.outcome, mended.rows) == ("fed", ROWS)
    assert mended.run != result.run


def test_a_file_that_is_no_rdb_file_aborts_its_instance(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "no.rdb"
    path.write_bytes(b"PK\x03\x04 something else entirely")
    result = feed_file(settings, job(path))
    assert result.outcome == "aborted"
    assert kinds(messages(settings)) == ["begin", "abort"]


def test_an_empty_dump_is_begin_and_done(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "empty.rdb"  # T27
    write_mixed(path, 0)
    assert feed_file(settings, job(path)).rows == 0
    assert kinds(messages(settings)) == ["begin", "done"]


def string_rdb(path: Path, keys: list[bytes]) -> None:
    """By hand: RDB version 9 with string keys of any size."""

    def text(raw: bytes) -> bytes:
        return b"\x80" + len(raw).to_bytes(4, "big") + raw

    path.write_bytes(b"REDIS0009\xfe\x02" + b"".join(b"\x00" + text(k) + text(b"v") for k in keys) + b"\xff" + bytes(8))


def test_keys_of_a_megabyte_get_through(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "large.rdb"  # T14
    keys = [bytes([65 + i]) * 1_000_000 for i in range(5)] + [b"\xff\x00\n'", b""]
    string_rdb(path, keys)
    assert feed_file(settings, job(path)).rows == len(keys)
    assert rows_of(messages(settings)).column("key").to_pylist() == keys


def test_a_record_larger_than_the_topic_allows_names_key_db_and_setting(
    settings: Settings, tmp_path: Path, admin: AdminClient
) -> None:
    path = tmp_path / "large.rdb"  # T14
    string_rdb(path, [b"small", b"k" * 300_000, b"later"])
    topic = records_topic("c", INSTANCE, settings.namespace)
    create_topic(admin, topic, 1, {"max.message.bytes": "100000"})
    result = feed_file(settings, job(path))
    assert result.outcome == "aborted"
    for part in (b"kkkk".hex(), "db 2", "100000", "MILLSTREAM_MAX_MESSAGE_BYTES", topic):
        assert part in result.reason
    assert kinds(messages(settings))[-1] == "abort"


def test_many_rows_are_cut_to_what_the_topic_allows(settings: Settings, rdb: Path, admin: AdminClient) -> None:
    create_topic(admin, records_topic("c", INSTANCE, settings.namespace), 1, {"max.message.bytes": "60000"})
    feed_file(settings, job(rdb))
    assert_once(settings, rdb)
    assert max(len(m.value() or b"") for m in messages(settings)) < 60_000


def test_a_topic_with_more_partitions_is_refused(settings: Settings, rdb: Path, admin: AdminClient) -> None:
    create_topic(admin, records_topic("c", INSTANCE, settings.namespace), 4)  # T8
    with pytest.raises(ConfigError, match="exists with 4 partitions"):
        feed_file(settings, job(rdb))


def test_the_dead_letter_topic_is_there_before_the_first_record(
    settings: Settings, rdb: Path, admin: AdminClient
) -> None:
    feed_file(settings, job(rdb))
    assert dlq_topic(records_topic("c", INSTANCE, settings.namespace)) in admin.list_topics(timeout=10).topics


@pytest.mark.parametrize("instance", ["[fe80::1%eth0]:6379", "/tmp/redis.sock", "实例:1", "../x:1"])
def test_any_name_of_an_instance_can_be_fed(instance: str, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "a.rdb"  # T15
    string_rdb(path, [b"k"])
    cluster = "../../etc"
    feed_file(settings, job(path, instance, cluster=cluster))
    found = messages(settings, cluster, instance)
    run = label_of(found[0].headers() or []).run
    assert (run.batch.cluster, run.instance) == (cluster, instance)


def test_in_the_shared_layout_instances_keep_positions_of_their_own(
    kafka: str, settings: Settings, rdb: Path, tmp_path: Path
) -> None:
    shared = Settings(
        bootstrap_servers=kafka, namespace=settings.namespace, topic_layout="shared", shared_topic_partitions=1
    )
    other = tmp_path / "b.rdb"
    write_mixed(other, 10, seed=9)
    both = ["a:1", "b:1"]
    assert feed_file(shared, job(rdb, "a:1", instances=both)).outcome == "fed"
    assert feed_file(shared, job(other, "b:1", instances=both)).outcome == "fed"
    assert feed_file(shared, job(rdb, "a:1", instances=both)).outcome == "already"
    found = read_all(kafka, settings.namespace + "rdb.records")
    assert [label_of(m.headers() or []).run.instance for m in found if m.key() != b"a:1"] == ["b:1"] * 3
    assert rows_of(found).num_rows == ROWS + 10


async def test_several_files_are_fed_by_processes_and_one_failure_leaves_the_others_alone(
    settings: Settings, rdb: Path, tmp_path: Path
) -> None:
    jobs = [job(rdb, "a:1"), job(tmp_path / "absent.rdb", "b:1"), job(rdb, "c:1")]
    seen: dict[str, int] = {}
    environment = os.environ | {
        "MILLSTREAM_BOOTSTRAP_SERVERS": str(settings.bootstrap_servers),
        "MILLSTREAM_NAMESPACE": settings.namespace,
    }
    found = await feed_all(jobs, 2, lambda j, rows, _at: seen.update({j.instance: rows}), environment)
    assert {name: r.rows for name, r in found.items() if isinstance(r, FeedResult)} == {"a:1": ROWS, "c:1": ROWS}
    assert isinstance(found["b:1"], FeedError)
    assert "absent.rdb" in str(found["b:1"])
    assert seen == {"a:1": ROWS, "c:1": ROWS}
