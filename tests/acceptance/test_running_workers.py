"""Feeding for workers that run, and looking after batches: `dump … feed`, `batches`, `batches abort`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.batch import Batch, Run, parse_rfc3339
from schemas.control import Done, add_digest, headers_of, label_of
from schemas.names import dlq_topic, records_topic
from tests.acceptance.cli import FIXTURES, Cli, expected_rows, pairs, parquet_rows, tree
from tests.support.kafka import produce, read_all
from tests.support.waiting import wait_until

BATCH = "2026-11-23T08:30:00.000000000Z"
SLUG = "2026-11-23_08-30-00.000Z"
FILES = {"a:1": "redis6.2-all", "b:1": "redis7.0-all", "c:1": "valkey9-all"}


@pytest.fixture
def cli(kafka: str, tmp_path: Path, unique: Any) -> Cli:
    short = {"SESSION_TIMEOUT": "6", "HEARTBEAT_INTERVAL": "1", "DISCOVERY_INTERVAL": "1"}
    return Cli(kafka, tmp_path, NAMESPACE=unique("live") + ".", PARQUET_DIR=str(tmp_path / "out"), **short)


def feed(instance: str, *options: str, batch: str = BATCH, path: Path | None = None) -> list[str]:
    files = {instance: path or FIXTURES / f"{FILES[instance]}.rdb"}
    return ["dump", "from-file", *pairs(files), "--cluster", "c", "--batch-timestamp", batch, "feed", *options]


def expecting(*instances: str) -> list[str]:
    return [word for i in instances for word in ("--expect", i)]


def state_of(cli: Cli, batch: str = BATCH) -> dict[str, Any]:
    return next((b for b in cli.batches() if b["batch"] == batch), {})


def until_state(cli: Cli, state: str, batch: str = BATCH) -> dict[str, Any]:
    wait_until(lambda: state_of(cli, batch).get("state") == state, 60, f"batch {batch} to be {state}", every=0.5)
    return state_of(cli, batch)


def test_a_batch_waits_for_its_missing_instance_and_new_instances_are_found(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"  # T12, T25
    with cli.worker():
        cli.ok(*feed("a:1", *expecting("b:1", "c:1")))
        cli.ok(*feed("b:1", *expecting("a:1", "c:1")))
        wait_until(lambda: state_of(cli).get("instances") == "2/3", 60, "two instances", every=0.5)
        found = state_of(cli)
        assert (found["state"], found["missing"]) == ("running", ["c:1"])
        assert "c:1" in cli.ok("batches", "list", "--stuck-after", "0")
        assert "stuck" in cli.ok("batches", "list", "--stuck-after", "0")
        assert not (out / "c" / SLUG).exists()
        again = cli.ok(*feed("a:1", *expecting("b:1", "c:1")))
        assert "was fed already" in again
    with cli.worker("w2"):  # another one: nothing that the first one knew is lost
        cli.ok(*feed("c:1", *expecting("a:1", "b:1")))
        until_state(cli, "published")
    assert tree(out) == {f"c/{SLUG}/{i.replace(':', '-')}.parquet" for i in FILES}
    for instance, fixture in FILES.items():
        assert parquet_rows(out / "c" / SLUG / f"{instance.replace(':', '-')}.parquet") == expected_rows(fixture)


def test_an_aborted_batch_is_never_published_and_the_worker_goes_on(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with cli.worker() as worker:
        cli.ok(*feed("a:1", *expecting("b:1")))
        wait_until(lambda: state_of(cli).get("instances") == "1/2", 60, "the first instance", every=0.5)
        said = cli.ok("batches", "abort", "c", BATCH, "--reason", "host is gone")
        assert "is aborted" in said
        assert state_of(cli)["reason"] == "host is gone"
        cli.ok(*feed("b:1", *expecting("a:1")))  # late: its rows come to nothing
        other = "2026-11-23T09:00:00.000000000Z"
        cli.ok(*feed("c:1", batch=other))
        until_state(cli, "published", other)
        assert state_of(cli)["state"] == "aborted"
        assert worker.poll() is None
    assert tree(out) == {"c/2026-11-23_09-00-00.000Z/c-1.parquet"} | {
        p for p in tree(out) if p.startswith(f"c/tmp_{SLUG}/")
    }
    unknown = cli("batches", "abort", "nobody", BATCH)
    assert unknown.returncode == 1
    assert "there is no batch" in unknown.stderr


@pytest.mark.parametrize("allowed", [False, True])
def test_undecodable_rows_are_kept_as_dead_letters_and_block_the_batch_unless_allowed(
    allowed: bool, cli: Cli, kafka: str, tmp_path: Path
) -> None:
    namespace = cli.environment["MILLSTREAM_NAMESPACE"]  # T13
    topic = records_topic("c", "a:1", namespace)
    cli.ok(*feed("a:1"))
    begin, rows, _ = read_all(kafka, topic)
    good = label_of(rows.headers() or []).rows
    # Another batch, as a feeder with a bug would write it: a message of 7 rows in it is garbage.
    run = Run(Batch("c", parse_rfc3339("2026-11-23T09:00:00Z")), "a:1", "f" * 32)
    bad, first, value = b"\xff\x00 no Arrow", rows.offset() or 0, rows.value() or b""
    at = first + 3  # behind done and the transaction's marker
    done = Done(rows=good + 7, messages=2, digest=add_digest(0, [value, bad]), begin=at)
    produce(
        kafka,
        topic,
        [
            {"value": begin.value(), "headers": headers_of("begin", run)},
            {"value": value, "headers": headers_of("rows", run, good)},
            {"value": bad, "headers": headers_of("rows", run, 7)},
            {"value": msgspec.json.encode(done), "headers": headers_of("done", run)},
        ],
    )
    found = read_all(kafka, topic)
    assert found[3].offset() == at
    # The garbage is a chunk of its own then: a range with no rows, which is no gap in the run.
    with cli.worker(ALLOW_DEAD_LETTERS=str(allowed), CHUNK_MAX_ROWS=str(good)) as worker:
        state = until_state(cli, "published" if allowed else "failed", run.batch.rfc3339)
        until_state(cli, "published")  # the other batch is not held up
        assert worker.poll() is None
    assert state["dead_letters"] == 7
    if not allowed:
        assert "7 of" in state["reason"]
        assert dlq_topic(topic) in state["reason"]
    (dead,) = read_all(kafka, dlq_topic(topic))
    told = dict(dead.headers() or [])
    assert (dead.value(), told["millstream.run"]) == (bad, b"f" * 32)
    assert (told["millstream.dlq.topic"], int(told["millstream.dlq.offset"])) == (topic.encode(), at + 2)
    published = tmp_path / "out" / "c" / "2026-11-23_09-00-00.000Z" / "a-1.parquet"
    assert published.exists() == allowed
    if allowed:
        assert parquet_rows(published) == expected_rows(FILES["a:1"])
