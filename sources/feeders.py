"""Feeds several dumps at once, each in a process of its own: parsing holds the GIL.

A child gets its job as JSON on stdin and answers with JSON lines on stdout: progress, and in the end a result or an
error. When its parent is gone it ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import IO

import msgspec

from millstream import metrics, tracing
from millstream.errors import MillstreamError
from millstream.logs import configure, error_chain
from millstream.settings import get_settings
from millstream.start import without_pandas
from sources.feed import FeedJob, FeedResult, feed_file

LINE_BYTES = 1 << 20
"""Of a child's line at most; its longest one holds the text of an error."""
SOURCE = "rdb"
"""Label of the metrics. What a resumed feeder did in an earlier life counts again: it is how far the file is."""
REPORT_SECONDS = 0.1
"""Between two lines of progress."""


class FeedError(MillstreamError):
    """A feeder ended without a result. The text is what it said."""


class _Line(msgspec.Struct, omit_defaults=True):
    progress: tuple[int, int] | None = None
    result: FeedResult | None = None
    error: str = ""


OnProgress = Callable[[FeedJob, int, int], None]
"""Called with rows and bytes of the file that are through."""


async def feed_all(
    jobs: Sequence[FeedJob],
    concurrency: int,
    on_progress: OnProgress,
    environment: Mapping[str, str] | None = None,
    log_file: IO[bytes] | None = None,
    on_result: Callable[[FeedResult | FeedError], None] = lambda _result: None,
) -> dict[str, FeedResult | FeedError]:
    """Feed all jobs, `concurrency` of them at a time; instance -> how it went. One that fails leaves the others alone.

    `environment` is the children's; their log goes to `log_file` (default: this process's stderr).
    """
    free = asyncio.Semaphore(concurrency)

    async def one(job: FeedJob) -> FeedResult | FeedError:
        async with free:
            result: FeedResult | FeedError
            try:
                result = await _feed(job, on_progress, environment, log_file)
            except FeedError as exc:
                result = exc
            on_result(result)
            return result

    found = await asyncio.gather(*(one(job) for job in jobs))
    return {job.instance: result for job, result in zip(jobs, found, strict=True)}


async def _feed(
    job: FeedJob, on_progress: OnProgress, environment: Mapping[str, str] | None, log_file: IO[bytes] | None
) -> FeedResult:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=log_file,
        env=None if environment is None else dict(environment),
        start_new_session=True,  # Ctrl-C is the parent's to answer
        limit=LINE_BYTES,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    result, error = None, ""
    rows = size = 0
    try:
        child.stdin.write(msgspec.json.encode(job) + b"\n")
        with contextlib.suppress(ConnectionError):
            await child.stdin.drain()
        async for line in _lines(child.stdout, job):
            if line.progress is not None:
                on_progress(job, *line.progress)
                metrics.FED_RECORDS.labels(SOURCE).inc(max(0, line.progress[0] - rows))
                metrics.FED_BYTES.labels(SOURCE).inc(max(0, line.progress[1] - size))
                rows, size = line.progress
            result, error = line.result or result, line.error or error
        code = await child.wait()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if result is None:
        raise FeedError(error or f"the feeder of instance {job.instance!r} ended with exit code {code}")
    return result


async def _lines(stdout: asyncio.StreamReader, job: FeedJob) -> AsyncIterator[_Line]:
    """What the child says. Raises FeedError for anything that is not a line of ours."""
    text = b""
    try:
        async for text in stdout:
            yield msgspec.json.decode(text, type=_Line)
    except (ValueError, msgspec.MsgspecError) as exc:
        raise FeedError(
            f"the feeder of instance {job.instance!r} wrote to its standard output what is no line of its own "
            f"({exc}; the last one read: {text[:80]!r}). Something in that process prints there: look at its log. "
            "What it has committed stays; feed the instance again"
        ) from exc


def main() -> int:
    """The child."""
    without_pandas()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=FeedJob)
    last, latest = 0.0, (0, 0)

    def say(line: _Line) -> None:
        try:
            sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            os._exit(1)  # the parent is gone; what is committed stays, the rest is aborted by the next feeder

    def on_progress(rows: int, position: int) -> None:
        nonlocal last, latest
        latest = rows, position
        if time.monotonic() - last >= REPORT_SECONDS:
            last = time.monotonic()
            say(_Line(progress=latest))

    try:
        settings = get_settings()
        configure(settings)
        with tracing.on(settings, "feed"):
            result = feed_file(settings, job, on_progress)
    except MillstreamError as exc:
        say(_Line(error="; ".join(text.partition(": ")[2] or text for text in error_chain(exc)[:1])))
        return 1
    if result.outcome != "aborted":
        say(_Line(progress=(result.rows, latest[1])))
    say(_Line(result=result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
