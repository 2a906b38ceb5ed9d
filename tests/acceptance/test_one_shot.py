"""`millstream dump from-file … into-…` from the outside: exit codes, files, rows, and what is left behind."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from bench.make_rdb import write_mixed
from tests.acceptance.cli import FIXTURES, Cli, clickhouse, expected_rows, pairs, parquet_rows, tree
from tests.support.waiting import wait_until

BATCH = "2026-11-23T08:30:00.123456789Z"
SLUG = "2026-11-23_08-30-00.123Z"


@pytest.fixture
def cli(kafka: str, tmp_path: Path) -> Cli:
    return Cli(kafka, tmp_path)


def dump(files: dict[str, Path], cluster: str = "prod", batch: str = BATCH) -> list[str]:
    return ["dump", "from-file", *pairs(files), "--cluster", cluster, "--batch-timestamp", batch]


def left(cli: Cli) -> list[str]:
    """What one-shots have left in the data directory, but for their logs."""
    return [path.name for path in (cli.directory / "data").glob("oneshot-*")]


def oneshots(admin: AdminClient) -> set[str]:
    return {topic for topic in admin.list_topics(timeout=30).topics if topic.startswith("oneshot-")}


def test_several_dumps_become_one_published_batch_in_parquet(cli: Cli, tmp_path: Path, admin: AdminClient) -> None:
    files = {  # RU-61…64, RP-57…59, RP-65, T15, T27
        "10.0.0.1:6379": "redis6.2-all",
        "[fe80::1%eth0]:6379": "redis7.0-all",
        "../x:1": "redis8.2-all",
        "实例": "valkey9-all",
        "empty:1": "redis7.0-empty",
    }
    out, before = tmp_path / "out", oneshots(admin)
    command = dump({i: FIXTURES / f"{f}.rdb" for i, f in files.items()}, "../../etc")
    said = cli.ok(*command, "into-parquet", "--dir", out, "--compression", "snappy", "--sort")
    assert "published" in said
    found = tree(out)
    assert len(found) == len(files)
    assert {Path(p).suffix for p in found} == {".parquet"}
    assert {Path(p).parent.name for p in found} == {SLUG}
    assert len({p.partition("/")[0] for p in found}) == 1
    assert [p for p in tmp_path.rglob("*.parquet") if out not in p.parents] == []
    published = (out / min(found)).parent
    assert (published / "10.0.0.1-6379.parquet").exists()  # RP-17
    totals = Counter(parquet_rows(published / "10.0.0.1-6379.parquet"))
    assert totals == expected_rows("redis6.2-all")
    everything: Counter[object] = Counter()
    for path in published.iterdir():
        everything.update(parquet_rows(path))
    assert everything == sum((expected_rows(f) for f in files.values()), Counter())
    wait_until(lambda: not oneshots(admin) - before, 30, "the topics of the one-shot to be gone")


def test_the_same_batch_again_is_refused_and_stays_as_it_is(cli: Cli, tmp_path: Path) -> None:
    out, first = tmp_path / "out", {"a:1": FIXTURES / "redis7.0-all.rdb"}  # T29, RP-70
    cli.ok(*dump(first), "into-parquet", "--dir", out)
    before = {p: (out / p).read_bytes() for p in tree(out)}
    for other in (cli, Cli(None, tmp_path)):  # without a Kafka of its own none is started to say so
        again = other(*dump({"a:1": FIXTURES / "redis6.2-all.rdb"}), "into-parquet", "--dir", out)
        assert again.returncode == 1
        assert f"is published already: {out / 'prod' / SLUG}. " in again.stderr
        assert "To dump anew leave out --batch-timestamp" in again.stderr
        assert "start again with" not in again.stderr
        assert "Traceback" not in again.stderr
        assert {p: (out / p).read_bytes() for p in tree(out)} == before
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["logs"]
    assert list((tmp_path / "data" / "logs").iterdir()) == []


def test_a_corrupt_file_fails_the_batch_by_name_and_byte_and_can_be_mended(
    cli: Cli, tmp_path: Path, admin: AdminClient
) -> None:
    out, broken, before = tmp_path / "out", tmp_path / "broken.rdb", oneshots(admin)  # RU-68, RU-69, RP-62, T28
    whole = (FIXTURES / "redis7.0-all.rdb").read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    files = {"good:1": FIXTURES / "redis6.2-all.rdb", "bad:1": broken}
    failed = cli(*dump(files), "into-parquet", "--dir", out)
    assert failed.returncode == 1
    for part in ("broken.rdb", "byte ", "bad:1", f"--batch-timestamp {BATCH}"):
        assert part in failed.stderr
    assert not (out / "prod" / SLUG).exists()
    assert left(cli) == []
    wait_until(lambda: not oneshots(admin) - before, 30, "the topics of the failed batch to be gone")
    other = "2026-11-23T09:00:00Z"
    cli.ok(*dump({"good:1": FIXTURES / "redis6.2-all.rdb"}, batch=other), "into-parquet", "--dir", out)  # not blocked
    broken.write_bytes(whole)
    cli.ok(*dump(files), "into-parquet", "--dir", out)
    assert parquet_rows(out / "prod" / SLUG / "bad-1.parquet") == expected_rows("redis7.0-all")
    assert parquet_rows(out / "prod" / SLUG / "good-1.parquet") == expected_rows("redis6.2-all")


def test_a_one_shot_that_is_killed_and_started_again_goes_on(cli: Cli, tmp_path: Path) -> None:
    out, big = tmp_path / "out", tmp_path / "big.rdb"  # hole e
    write_mixed(big, 150_000)
    files = {"a:1": big, "b:1": FIXTURES / "redis7.0-all.rdb"}
    command = [*dump(files), "into-parquet", "--dir", str(out)]
    # The feeder stops after a committed transaction, and everything is killed in that state.
    environment = cli.environment | {"MILLSTREAM_FAILPOINTS": "feed.after_commit=stop1"}
    first = subprocess.Popen(
        [cli_program(), *command], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_until(lambda: stopped_child(first.pid), 60, "the feeder to reach its failpoint")
    stopped = stopped_child(first.pid)
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    subprocess.run(["kill", "-9", *map(str, stopped)], check=False)
    assert first.stdout
    first.stdout.close()
    assert "published" in cli.ok(*command)
    keys = [row[1] for row in parquet_rows(out / "prod" / SLUG / "a-1.parquet").elements()]
    assert len(keys) == len(set(keys)) == 150_000
    assert tree(out) == {f"prod/{SLUG}/a-1.parquet", f"prod/{SLUG}/b-1.parquet"}


def cli_program() -> str:
    from tests.acceptance.cli import PROGRAM

    return PROGRAM


def stopped_child(parent: int) -> list[int]:
    """Processes stopped by a failpoint among a process's children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] == "T" and int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def test_a_worker_that_dies_fails_the_command_with_the_end_of_its_log_and_is_gone_on_with(
    cli: Cli, tmp_path: Path, admin: AdminClient
) -> None:
    out, files, before = tmp_path / "out", {"a:1": FIXTURES / "redis7.0-all.rdb"}, oneshots(admin)
    died = cli(*dump(files), "into-parquet", "--dir", out, FAILPOINTS="parquet.merge.before=kill")
    assert died.returncode == 1
    assert "the worker ended with exit code -9" in died.stderr
    assert "parquet_writer_open" in died.stderr
    assert f"start again with --batch-timestamp {BATCH}" in died.stderr
    assert not (out / "prod" / SLUG).exists()
    assert left(cli) == []
    assert oneshots(admin) - before  # what was fed
    cli.ok(*dump(files), "into-parquet", "--dir", out)
    wait_until(lambda: not oneshots(admin) - before, 30, "the topics of the one-shot to be gone")
    assert parquet_rows(out / "prod" / SLUG / "a-1.parquet") == expected_rows("redis7.0-all")


def test_a_full_disk_fails_the_command_by_path_and_instance(cli: Cli, tmp_path: Path) -> None:
    out, files = tmp_path / "out", {"a:1": FIXTURES / "redis7.0-all.rdb"}  # T43, RP-61
    full = cli(*dump(files), "into-parquet", "--dir", out, FAILPOINTS="parquet.part.before_write=enospc")
    assert full.returncode == 1
    for part in ("No space left", "a:1", str(out)):
        assert part in full.stderr


def test_a_dump_becomes_a_complete_batch_in_embedded_clickhouse(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "ch"  # RU-65, RP-67
    recent = time.strftime("%Y-%m-%dT%H:%M:%S.123456789Z", time.gmtime())
    url = f"chdb://{path}?database=redis"
    files = {"a:1": FIXTURES / "redis7.0-all.rdb", "b:1": FIXTURES / "redis7.0-empty.rdb"}
    cli.ok(*dump(files, batch=recent), "into-clickhouse", "--url", url, "--auto-create-tables")
    counts = clickhouse(path, "SELECT instance, count() FROM redis.redis_records_view GROUP BY instance")
    assert counts == [("a:1", str(expected_rows("redis7.0-all").total()))]
    (marker,) = clickhouse(path, "SELECT cluster, toUnixTimestamp64Nano(batch) FROM redis.import_batches_completed")
    assert marker[0] == "prod"
    assert marker[1].endswith("123456789")  # T36
    keys = clickhouse(path, "SELECT db, lower(hex(key)), type, encoding FROM redis.redis_records_view")
    assert Counter((int(d), bytes.fromhex(k), t, e) for d, k, t, e in keys) == expected_rows("redis7.0-all")


def test_without_tables_clickhouse_is_refused_with_the_command_that_prints_them(cli: Cli, tmp_path: Path) -> None:
    recent = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())  # T39
    command = dump({"a:1": FIXTURES / "redis7.0-all.rdb"}, batch=recent)
    refused = cli(*command, "into-clickhouse", "--url", f"chdb://{tmp_path / 'ch'}?database=redis")
    assert refused.returncode == 1
    assert "--auto-create-tables" in refused.stderr


def test_a_clickhouse_that_does_not_answer_is_named_while_it_is_retried(cli: Cli) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000000000Z", time.gmtime())
    command = dump({"a:1": FIXTURES / "redis7.0-all.rdb"}, batch=now)
    url = "http://me:hush@127.0.0.1:1?database=d"
    started = cli.start(*command, "into-clickhouse", "--url", url, SINK_RETRY_TIMEOUT="600")
    assert started.stderr
    try:
        told = next((line for line in started.stderr if "tried again" in line), "")
        assert told.startswith("ClickHouse http://me:***@127.0.0.1:1?database=d: could not connect: ")
        assert re.search(r"It is tried again until \d\d:\d\d:\d\d", told)
        started.send_signal(signal.SIGINT)
        _, rest = started.communicate(timeout=300)
    finally:
        started.kill()
        started.communicate()
    assert started.returncode == 1
    assert "tried again" not in rest
    assert f"stopped; start again with --batch-timestamp {now} to go on" in rest
    assert left(cli) == []


def test_the_demo_works_twice(cli: Cli, tmp_path: Path) -> None:
    for _ in range(2):
        said = cli.ok("demo", "--keys", "3000")
        assert said.count("3,000") == 6
        assert "Try next" in said
        assert (tmp_path / "demo-out" / "report.html").stat().st_size > 50_000
    assert len(list((tmp_path / "demo-out" / "parquet" / "demo").iterdir())) == 2
