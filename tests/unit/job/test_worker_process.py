"""What a one-shot tells of its worker: why it waits, and why it ended."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path

import pytest

from streams.cli.oneshot import IDLE_SECONDS, Outage
from streams.cli.worker import WorkerFailedError, WorkerProcess

BANNER = "+ƒaµS† v0.15.3+-----+\n| id          | oneshot-1 |\n+-------------+-----+\n"
CHAIN = [
    "SinkError: /out: Not a directory ([Errno 20] Not a directory: '/out')",
    "NotADirectoryError: [Errno 20] Not a directory: '/out'",
    "OSError: the disk's own reason",
]
PLAIN = f"12:42:30.619 critical operation=worker_failed exit_code=70 error_chain={CHAIN!r} stopped without committing"
JSON = json.dumps({"operation": "worker_failed", "error_chain": CHAIN})


async def told(path: Path) -> str:
    """What is said of a worker that ended with 70 and has this log."""
    worker = WorkerProcess({}, path)
    worker._process = await asyncio.create_subprocess_exec("sh", "-c", "exit 70")
    await worker._process.wait()
    with pytest.raises(WorkerFailedError) as failed:
        worker.check()
    return str(failed.value)


@pytest.mark.parametrize("line", [PLAIN, JSON], ids=["console", "json"])
def test_the_reason_that_it_gave_is_told_once_and_not_the_log(line: str, tmp_path: Path) -> None:
    why = "/out: Not a directory ([Errno 20] Not a directory: '/out') <- the disk's own reason"
    log = tmp_path / "worker.log"
    log.write_text(f"{BANNER}12:42:29.000 info operation=a\n{line}\n", "utf-8")
    assert asyncio.run(told(log)) == (f"the worker ended with exit code 70: {why}\nThe log of the worker: {log}")


@pytest.mark.parametrize(
    "last", ["killed", "{", "{}", '{"error_chain": []}', "operation=worker_failed error_chain=[x]"]
)
def test_of_one_that_gave_none_the_end_of_the_log_is_shown_without_the_banner(last: str, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text(f"{BANNER}one\n{last}\n", "utf-8")
    assert asyncio.run(told(log)) == (f"the worker ended with exit code 70. The end of {log}:\none\n{last}")


RETRY = ["RetryableSinkError: ClickHouse http://h:1?database=d: could not connect: refused <- [Errno 111] refused"]


@pytest.mark.parametrize(
    "line",
    [
        f"12:42:30.619 warning operation=open_retry sink=clickhouse retry=1 error_chain={RETRY!r} its partition waits",
        json.dumps({"operation": "write_chunk_retry", "sink": "clickhouse", "error_chain": RETRY}),
    ],
    ids=["console", "json"],
)
def test_why_a_sink_is_retried_is_read_from_the_log_once_and_only_whole_lines(line: str, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    worker, why = WorkerProcess({}, log), RETRY[0].partition(": ")[2]
    assert worker.retrying() == ""  # no log yet
    log.write_text(f"{BANNER}info operation=a error_chain=['X: no retry']\n{line}", "utf-8")
    assert worker.retrying() == ""
    log.write_text(f"{log.read_text('utf-8')}\ninfo operation=b\n", "utf-8")
    assert worker.retrying() == why
    assert worker.retrying() == ""


def test_an_outage_is_told_in_one_line_until_the_time_that_it_names_is_over() -> None:
    now = 1_000_000.0
    outage, why = Outage(60.0, lambda: now), RETRY[0].partition(": ")[2]
    told = outage.told(why, idle=0)
    assert re.fullmatch(
        r"ClickHouse http://h:1\?database=d: could not connect: refused\. It is tried again until \d\d:\d\d:\d\d "
        r"\(MILLSTREAM_SINK_RETRY_TIMEOUT = 60 s\)",
        told,
    )
    now += 59
    assert outage.told(why, idle=59) == ""
    now += 2
    assert outage.told(why, idle=0)  # another outage


@pytest.mark.parametrize("timeout", [None, 600.0])
def test_the_one_shot_itself_may_give_up_before_the_sink_does(timeout: float | None) -> None:
    outage, why = Outage(timeout, lambda: 1_000_000.0), "no answer"
    ends = time.strftime("%H:%M:%S", time.localtime(1_000_000.0 + IDLE_SECONDS - 30))
    assert outage.told(why, idle=30) == f"no answer. It is tried again until {ends}"
