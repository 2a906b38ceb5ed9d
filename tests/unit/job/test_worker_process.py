"""What a one-shot tells of its worker that ended."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

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
