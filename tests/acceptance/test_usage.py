"""What is wrong with a command line is said at once: exit code 2 for wrong usage, 1 for everything else.

2 is what the command line alone shows, and local files that it names; 1 what has to be asked for, and settings.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from streams.cli import cli
from tests.acceptance.cli import FIXTURES

RDB = str(FIXTURES / "redis7.0-all.rdb")
FROM = ["dump", "from-file", "--cluster", "c", "--path", RDB, "--instance", "a:1"]
STANDALONE = ["dump", "from-standalone", "--cluster", "c", "--addr", "127.0.0.1:1"]
CLUSTER = ["dump", "from-cluster", "--cluster", "c", "--nodes", "127.0.0.1:1,127.0.0.1:2"]
CODIS = ["dump", "from-codis", "--dashboard", "http://u:hush@127.0.0.1:1"]
SOURCES = {tuple(source[:2]): source for source in (FROM, STANDALONE, CLUSTER, CODIS)}


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, arguments, env={f"MILLSTREAM_{k}": v for k, v in environment.items()})
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dump", "--concurrency", "0", *FROM[1:], "into-parquet", "--dir", "x"], "1<=x<=1000"),
        (["dump", "--concurrency", "1001", *FROM[1:], "into-parquet", "--dir", "x"], "1<=x<=1000"),
        ([*FROM, "--path", RDB, "into-parquet", "--dir", "x"], "2 of --path, 1 of --instance"),
        ([*FROM, "--path", RDB, "--instance", "a:1", "into-parquet", "--dir", "x"], "given twice"),
        ([*FROM, "into-parquet"], "--dir"),
        ([*FROM, "into-parquet", "--dir", "x", "--compression", "lzma"], "zstd"),
        ([*FROM, "--batch-timestamp", "yesterday", "into-parquet", "--dir", "x"], "not an RFC 3339 time"),
        ([*FROM, "into-clickhouse"], "--url"),
        ([*FROM, "--cluster", "", "into-parquet", "--dir", "x"], "--cluster must not be empty"),
        (["dump", "from-file", "--cluster", "c", "--path", "/no/such", "--instance", "a", "into-parquet", "--dir", "x"],
         "/no/such: no such file"),
        (["dump", "from-file", "--cluster", "c", "--path", "/", "--instance", "a", "into-parquet", "--dir", "x"],
         "/: is a directory; give the file"),
        ([*FROM, "into-parquet", "--dir", RDB], "is no directory"),
        ([*FROM, "into-parquet", "--dir", f"{RDB}/out"], "cannot be made: Not a directory"),
        (["dump", "from-standalone", "--cluster", "c", "--addr", "nowhere", "feed"], "'nowhere' is not host:port"),
        (["dump", "from-standalone", "--cluster", "c", "--addr", "h:70000", "feed"], "1 to 65535"),
        (["dump", "from-cluster", "--cluster", "c", "--nodes", "h:1,h", "feed"], "'h' is not host:port"),
        (["dump", "from-codis", "--dashboard", "127.0.0.1:1", "feed"], "http://host:port is expected"),
        ([*CLUSTER, "--cluster", "", "feed"], "--cluster must not be empty"),
        ([*STANDALONE, "--username", "u", "feed"], "--username u needs a password"),
        ([*STANDALONE, "--tls-insecure", "feed"], "go with --tls"),
        ([*STANDALONE, "--tls", "--tls-ca-cert", "/no/such", "feed"], "/no/such"),
        (["dump", "from-file", "--cluster", "c", "--path", "/no/such", "--instance", "a", "feed"], "no such file"),
        ([*FROM, "feed", "--expect", ""], "--expect must not be empty"),
        ([*FROM, "into-clickhouse", "--url", "http://u:hush@h:1"], "?database="),
        ([*FROM, "into-clickhouse", "--url", "ftp://u:hush@h:1?database=d"], "scheme"),
        ([*FROM, "into-clickhouse", "--url", "http://h:1?database=d", "--proxy-url", "x"], "http(s)://host:port"),
        (["batches", "abort", "c", "yesterday"], "RFC 3339"),
        (["verify", "batch", "c", "yesterday"], "RFC 3339"),
        (["verify", "products", "--table", "a b"], "'a b': a plain name"),
        (["etl", "products", "--table", "a;b"], "'a;b': a plain name"),
        (["etl", "products", "--dry-run", "--follow"], "--dry-run goes without --follow"),
        (["migrate", "--check", "--print"], "--print goes without --check"),
        (["dlq", "requeue", "t"], "give ids, or --all"),
        (["dlq", "drop", "t", "0:1", "--all"], "give ids, or --all"),
        (["outbox", "requeue"], "give --event ID, --parked or --since TIME"),
        (["outbox", "requeue", "--since", "2026-11-23"], "write a time with its offset"),
        (["outbox", "prune", "--older-than", "soon"], "such as 7d"),
        (["outbox", "relay", "--create-slot"], "--create-slot goes with --via replication"),
        (["outbox", "relay", "--once", "--via", "replication"], "--once goes with --via polling"),
        (["replay"], "give one of --from TIME"),
        (["replay", "--from", "yesterday"], "'yesterday': write a time"),
        (["replay", "--offset", "0"], "'0' is no PARTITION:OFFSET"),
        (["replay", "--from", "beginning", "--since", "2026-11-23T00:00:00Z"], "--since goes with --outbox"),
        (["replay", "--from", "beginning", "--swap"], "--swap goes with --rebuild"),
        (["replay", "--from", "beginning", "--rebuild", "--swap", "--dry-run"], "--dry-run does not swap"),
        (["replay", "--drop", "--rebuild"], "--drop goes alone"),
        (["report", "from-parquet", "/no/such"], "/no/such: no such directory"),
        (["report", "from-parquet", "/", "--batch", "yesterday"], "RFC 3339"),
        (["report", "from-clickhouse"], "Give --url"),
        (["report", "from-clickhouse", "--url", "http://u:hush@h?database=d"], "names no port"),
        (["reset"], "--topic"),
        (["demo", "--dir", RDB], "is no directory"),
        (["demo-changefeed", "--dir", RDB], "is no directory"),
        (["misc", "clickhouse-schema", "--database", "a`b"], "A-Z a-z 0-9 _ and -"),
        (["misc", "completion", "csh"], "bash"),
        (["nonsense"], "No such command"),
    ],
)  # fmt: skip
def test_wrong_usage_is_told_with_what_is_allowed(arguments: list[str], says: str) -> None:
    code, said = run(*arguments, BOOTSTRAP_SERVERS="127.0.0.1:1", POSTGRES_URL="postgresql://me@127.0.0.1:1/none")
    assert (code, says in said) == (2, True), said
    assert "hush" not in said
    assert "127.0.0.1:1/" not in said, "nobody was asked"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*FROM, "--batch-timestamp", "2020-01-01T00:00:00Z", "into-clickhouse", "--url", "chdb:///x?database=d"],
         "ClickHouse deletes batches after 3 days"),
        ([*FROM, "feed"], "MILLSTREAM_BOOTSTRAP_SERVERS"),
        ([*CLUSTER, "--password", "hush-hush", "into-parquet", "--dir", "x"], "127.0.0.1:2: Connection refused"),
        ([*CODIS, "into-parquet", "--dir", "x"], "Codis dashboard http://u:***@127.0.0.1:1: "),
        (["batches"], "MILLSTREAM_BOOTSTRAP_SERVERS"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_fed(arguments: list[str], says: str) -> None:
    code, said = run(*arguments)  # T37, T42
    assert code == 1
    assert says in said
    assert "hush" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "must be postgresql://user@host:port/database, a password behind the user"),
        (
            "postgresql://me:hush@127.0.0.1:1/shop",
            "cannot connect to Postgres (does it run there, is MILLSTREAM_POSTGRES",
        ),
    ],
)
def test_a_postgres_that_cannot_be_used_is_told_with_the_setting(url: str, says: str) -> None:
    code, said = run("migrate", POSTGRES_URL=url)
    assert (code, says in said) == (1, True), said
    assert "MILLSTREAM_POSTGRES_URL" in said
    assert "hush" not in said


def test_options_of_the_list_of_batches_go_without_its_name(kafka: str) -> None:
    assert run("batches", "--json", BOOTSTRAP_SERVERS=kafka)[0] == 0
    assert run("batches", "--cluster", "nobody", BOOTSTRAP_SERVERS=kafka) == (0, "no batches of cluster 'nobody' yet\n")


def test_a_feeder_that_is_interrupted_says_how_to_go_on(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    # `streams.cli.dump` is the command, too
    monkeypatch.setattr(importlib.import_module("streams.cli.dump"), "feed_all", interrupted)
    at = "2026-11-23T08:30:00.000000000Z"
    code, said = run(*FROM, "--batch-timestamp", at, "feed", BOOTSTRAP_SERVERS=kafka, NAMESPACE="interrupted.")
    assert code == 1
    assert said.startswith(f"batch {at} of cluster 'c', 1 instance\n")
    assert said.endswith(f"stopped; start again with --batch-timestamp {at} to go on\n")


def test_a_broker_that_does_not_answer_is_named(tmp_path: Path) -> None:
    code, said = run(*FROM, "feed", BOOTSTRAP_SERVERS="127.0.0.1:1", DATA_DIR=str(tmp_path))
    assert code == 1
    assert "127.0.0.1:1" in said


@pytest.mark.parametrize(
    "command",
    [
        ("dlq", "list", "events"),
        ("outbox", "relay"),
        ("batches",),
        ("replay", "--from", "beginning"),
        ("verify", "projection"),
        ("verify", "products"),
        ("verify", "batch", "c", "2026-01-01T00:00:00Z"),
    ],
    ids=" ".join,
)
def test_so_is_it_by_every_command_that_needs_it(command: tuple[str, ...]) -> None:
    code, said = run(*command, BOOTSTRAP_SERVERS="127.0.0.1:1", POSTGRES_URL="postgresql://me@127.0.0.1:1/none")
    assert code == 1
    assert "no Kafka broker answers at MILLSTREAM_BOOTSTRAP_SERVERS = '127.0.0.1:1'" in said


def test_a_wrong_variable_is_named() -> None:
    code, said = run("batches", CHUNK_MAX_ROWS="0")
    assert code == 1
    assert "MILLSTREAM_CHUNK_MAX_ROWS" in said


def test_the_ddl_and_the_completion_can_be_printed() -> None:
    code, ddl = run("misc", "clickhouse-schema", "--database", "redis")
    assert code == 0
    for name in ("redis_records_raw", "import_batches_completed", "redis_records_view", "`redis`"):
        assert name in ddl
    for shell in ("bash", "zsh", "fish"):
        code, script = run("misc", "completion", shell)
        assert code == 0
        assert "_MILLSTREAM_COMPLETE" in script


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [path]
    for name, command in group.commands.items():
        found += commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


@pytest.mark.parametrize("path", commands(cli), ids=" ".join)
def test_every_help_has_an_example(path: tuple[str, ...]) -> None:
    filled = [*SOURCES.get(path[:2], path[:2]), *path[2:]]
    code, said = run(*filled, "--help")
    assert code == 0
    assert "millstream " in said.partition("\n")[2]
    assert run(*path, "-h") == (0, said), "without the options that the source needs"
