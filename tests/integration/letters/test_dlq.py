"""`millstream dlq`: letters are sent again or dropped once, whatever happens to the one who does it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient

from millstream.errors import ConfigError
from millstream.settings import Settings, override_settings
from schemas.chunk import ChunkId
from schemas.codecs import Rejected
from schemas.log_records import LogRecord
from schemas.products.codec import ROW, headers_of
from streams.cli.dlq import dlq
from streams.engine.chunk import Chunk
from streams.engine.dead_letters import dead_letter
from streams.letters import Letters, LettersBusyError
from tests.acceptance.cli import Cli
from tests.support.kafka import create_topic, produce, read_all
from tests.support.waiting import wait_until

HEADERS = [("event_id", b"e"), ("twice", b"1"), ("twice", b"\xff"), ("none", None)]


@pytest.fixture
def topic(kafka: str, admin: AdminClient, make_topic: Callable[..., str]) -> str:
    """A topic with dead letters at 0..3: of partitions 0, 1, 1 and 0."""
    name = make_topic("events", partitions=2)
    create_topic(admin, f"{name}.dlq")
    found = []
    for offset, partition in ((5, 0), (6, 1), (7, 1), (8, 0)):
        record = LogRecord(offset, 1, 0, b"k%d" % offset, None if offset == 8 else b"\xff%d" % offset, HEADERS)
        chunk = Chunk(ChunkId(name, "t", 0, partition, offset, offset), [record])
        found.append(dead_letter(chunk, Rejected(record, f"bad {offset}")))
    produce(kafka, f"{name}.dlq", [{"key": o.key, "value": o.value, "headers": list(o.headers)} for o in found])
    return name


@pytest.fixture
def run(cli: Cli, kafka: str) -> Iterator[Callable[..., str]]:
    """Commands in this process: starting a program takes seconds."""
    with override_settings(bootstrap_servers=kafka, app_id=cli.environment["MILLSTREAM_APP_ID"]):

        def run(*arguments: str) -> str:
            result = CliRunner().invoke(dlq, arguments, catch_exceptions=False)
            assert result.exit_code == 0, result.output
            return result.stdout

        yield run


@pytest.fixture
def cli(kafka: str, tmp_path: Path, unique: Callable[[str], str]) -> Cli:
    return Cli(kafka, tmp_path, APP_ID=unique("letters"))


def test_rows_of_the_product_etl_are_not_sent_again_but_told_where_to_mend(
    cli: Cli, kafka: str, make_topic: Callable[..., str], admin: AdminClient
) -> None:  # T72
    name = make_topic("etl")
    create_topic(admin, f"{name}.dlq")
    headers = headers_of(ROW, "0123456789abcdef")
    record = LogRecord(3, 1, 0, b'["B","s"]', b"{}", [*headers])
    letter = dead_letter(Chunk(ChunkId(name, "t", 0, 0, 3, 3), [record]), Rejected(record, "bad price"))
    produce(kafka, f"{name}.dlq", [{"key": letter.key, "value": letter.value, "headers": list(letter.headers)}])
    refused = cli("dlq", "requeue", name, "--all")
    assert (refused.returncode, "mend the row there" in refused.stderr) == (1, True)
    assert "run 0123456789abcdef" in refused.stderr
    assert read_all(kafka, name) == []
    assert "dropped: 1" in cli.ok("dlq", "drop", name, "0:0", "--yes")


def settled(kafka: str, topic: str, count: int) -> list[Message]:
    """The topic's records, once there are so many: a commit is answered before its markers are written."""
    found: list[Message] = []

    def look() -> bool:
        found[:] = read_all(kafka, topic)
        return len(found) >= count

    wait_until(look, 60, f"{count} records in {topic}")
    assert len(found) == count
    return found


def content(m: Message) -> Any:
    return m.partition(), m.key(), m.value(), m.headers()


def test_letters_are_listed_shown_requeued_and_dropped_once(run: Callable[..., str], kafka: str, topic: str) -> None:
    listed = [json.loads(line) for line in run("list", topic, "--json").splitlines()]
    assert [(r["id"], r["topic"], r["partition"], r["offset"], r["reason"]) for r in listed] == [
        (f"0:{n}", topic, str(p), str(o), f"bad {o}") for n, (o, p) in enumerate([(5, 0), (6, 1), (7, 1), (8, 0)])
    ]
    assert f"0:1  {topic}-1@6  key k6  bad 6" in run("list", f"{topic}.dlq")
    whole = json.loads(run("show", topic, "0:2"))
    assert whole["value"] == "hex:ff37"
    assert whole["headers"] == [["event_id", "e"], ["twice", "1"], ["twice", "hex:ff"], ["none", None]]
    assert run("requeue", topic, "0:1", "0:3") == "requeued: 2, handled before: 0\n"
    sent = sorted(content(m) for m in settled(kafka, topic, 2))
    assert sent == [(0, b"k8", None, HEADERS), (1, b"k6", b"\xff6", HEADERS)]
    assert run("requeue", topic, "0:1", "0:3") == "requeued: 0, handled before: 2\n"
    assert run("drop", topic, "0:0", "--yes") == "dropped: 1, handled before: 0\n"
    assert run("requeue", topic, "--all") == "requeued: 1, handled before: 0\n"
    wait_until(lambda: run("list", topic) == "no dead letters\n", 60, "the marks to be visible")
    states = [json.loads(r)["handled"].split()[0] for r in run("list", topic, "--all", "--json").splitlines()]
    assert states == ["dropped", "requeued", "requeued", "requeued"]
    settled(kafka, topic, 3)


@pytest.mark.parametrize(("at", "again"), [("dlq.sent", 4), ("dlq.committed", 0)])
def test_a_requeue_that_is_killed_sent_all_or_nothing(
    cli: Cli, run: Callable[..., str], kafka: str, topic: str, at: str, again: int
) -> None:
    assert cli("dlq", "requeue", topic, "--all", FAILPOINTS=f"{at}=kill").returncode == -9
    assert run("requeue", topic, "--all") == f"requeued: {again}, handled before: 0\n"
    settled(kafka, topic, 4)


def test_of_two_at_once_one_gives_way(cli: Cli, kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(bootstrap_servers=kafka, app_id=cli.environment["MILLSTREAM_APP_ID"])
    first, second = Letters(settings, topic), Letters(settings, topic)
    transact = first._transact

    def slowly(*arguments: Any) -> None:
        assert second.requeue(["0:0"]) == 1  # begins after the first one has looked, ends before it sends
        transact(*arguments)

    monkeypatch.setattr(first, "_transact", slowly)
    with pytest.raises(LettersBusyError, match="another `millstream dlq`"):
        first.requeue(["0:0", "0:1"])
    assert [m.key() for m in settled(kafka, topic, 1)] == [b"k5"]


def test_what_cannot_be_done_is_said_and_nothing_is_sent(cli: Cli, kafka: str, topic: str, admin: AdminClient) -> None:
    settings = Settings(bootstrap_servers=kafka, app_id=cli.environment["MILLSTREAM_APP_ID"])
    with pytest.raises(ConfigError, match="no letter '0:9'"):
        Letters(settings, topic).requeue(["0:0", "0:9"])
    with pytest.raises(ConfigError, match="no topic 'nowhere'"):
        Letters(settings, "nowhere").all()
    record = LogRecord(1, 1, 0, None, b"v", [])
    lost = dead_letter(Chunk(ChunkId("gone", "t", 0, 0, 1, 1), [record]), Rejected(record, "bad"))
    produce(kafka, f"{topic}.dlq", [{"value": lost.value, "headers": list(lost.headers)}])
    with pytest.raises(ConfigError, match="letter 0:4 came from topic 'gone'"):
        Letters(settings, topic).requeue(["0:0", "0:4"])
    assert read_all(kafka, topic) == []
