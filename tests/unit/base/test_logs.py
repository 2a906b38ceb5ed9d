"""Log lines: their order, their errors, and what never stands in them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from millstream.logs import configure, error_chain, get_logger
from millstream.settings import Settings

SECRET = "s3cr3t-Passw0rd"
URL = f"http://user:{SECRET}@host:8123?database=d"


@pytest.fixture(autouse=True)
def _back_to_the_tests_logging() -> Iterator[None]:
    yield
    configure(Settings(log_level="debug"))


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_operation_comes_first_and_description_last(capsys: pytest.CaptureFixture[str]) -> None:  # RU-56
    for log_format in ("json", "console"):
        configure(Settings(log_format=log_format))
        get_logger().info("parquet_writer_open", description="writing parts", path="/a b", instance="10.0.0.1:6379")
    as_json, console = lines(capsys)
    fields = list(json.loads(as_json).items())
    assert fields[0] == ("operation", "parquet_writer_open")
    assert fields[-1] == ("description", "writing parts")
    assert json.loads(as_json)["timestamp"].endswith("Z")  # T24
    told = console.split(" info    ")[1]
    assert told == "operation=parquet_writer_open path='/a b' instance=10.0.0.1:6379 writing parts"


def test_lines_of_other_libraries_look_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Settings(log_format="json"))
    logging.getLogger("aiokafka.consumer").warning("Heartbeat %s", "failed")
    logging.getLogger("aiokafka.consumer").info("of no use to a user")
    (line,) = map(json.loads, lines(capsys))
    assert (line["operation"], line["description"], line["level"]) == (
        "aiokafka.consumer",
        "Heartbeat failed",
        "warning",
    )


def test_at_level_debug_other_libraries_speak_up(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Settings(log_level="debug"))
    logging.getLogger("faust.worker").debug("ready")
    assert "operation=faust.worker ready" in lines(capsys)[0]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_error_shows_its_chain_in_one_field_and_its_traceback_once(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:  # RU-59
    configure(Settings(log_format=log_format, clickhouse_url=URL))
    try:
        try:
            raise OSError(f"refused: {URL}")
        except OSError as e:
            raise ValueError(f"bad {SECRET}") from e
    except ValueError as e:
        get_logger().warning("write_chunk_retry", description="again", exc_info=e)
        get_logger().exception("worker_failed", description="stopping")
        logging.getLogger("faust").exception("agent crashed")
    text = capsys.readouterr().err
    assert SECRET not in text  # T42
    assert "http://user:***@host" in text
    assert text.count("Traceback") == 4  # two errors of two links each; the warning has none
    assert text.count("ValueError: bad ***") == 5
    if log_format == "json":
        chains = [json.loads(line)["error_chain"] for line in text.splitlines()]
        assert chains == [["ValueError: bad ***", "OSError: refused: http://user:***@host:8123?database=d"]] * 3
        assert list(json.loads(text.splitlines()[1]))[-2:] == ["exception", "description"]


def test_the_chain_follows_causes_and_contexts_and_ends_at_a_suppressed_one() -> None:
    error = ValueError("outer")
    error.__context__ = KeyError("a")
    assert error_chain(error) == ["ValueError: outer", "KeyError: 'a'"]
    error.__suppress_context__ = True
    assert error_chain(error) == ["ValueError: outer"]
    error.__cause__ = error
    assert error_chain(error) == ["ValueError: outer"]


@pytest.mark.parametrize(
    "how",
    ["fail()", "threading.Thread(target=fail).start()", "asyncio.run(fail_in_task())"],
    ids=["main", "thread", "task"],
)
def test_an_uncaught_exception_shows_no_secret(how: str) -> None:  # T42
    program = f"""
import asyncio, threading
from millstream.logs import configure
from millstream.settings import Settings
settings = Settings(clickhouse_url="http://user:" + "s3cr3t-" + "Passw0rd@host:8123?database=d")
configure(settings)
def fail():
    raise ValueError("url " + settings.clickhouse_url.get_secret_value()) from OSError("s3cr3t-" + "Passw0rd")
async def fail_in_task():
    task = asyncio.ensure_future(asyncio.to_thread(fail))
    await asyncio.wait([task])
{how}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "ValueError: url http://user:***@host:8123" in done.stderr
    assert SECRET not in done.stderr + done.stdout
