"""What a source command of `dump` gives to the target command behind it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from schemas.batch import parse_rfc3339
from sources.feed import FeedJob

_JOBS = "millstream.jobs"
"""Key in click's `Context.meta`."""


class Timestamp(click.ParamType):
    """RFC 3339, to the nanosecond."""

    name = "RFC3339"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Nanoseconds since 1970."""
        try:
            return value if isinstance(value, int) else parse_rfc3339(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


def now_ns() -> int:
    """Now, cut to milliseconds: the directory of a batch has no finer time (T30)."""
    return time.time_ns() // 1_000_000 * 1_000_000


batch_timestamp = click.option("--batch-timestamp", type=Timestamp(), help="Time of the dump, RFC 3339. Default: now.")


def give(ctx: click.Context, jobs: Callable[[], list[FeedJob]]) -> None:
    """Leave the jobs for the target; they are made when it asks, so that help needs no server."""
    ctx.meta[_JOBS] = jobs


def jobs_of(ctx: click.Context) -> list[FeedJob]:
    """The jobs of the source before."""
    found: list[FeedJob] = ctx.meta[_JOBS]() if callable(ctx.meta[_JOBS]) else ctx.meta[_JOBS]
    ctx.meta[_JOBS] = found
    return found


def make_writable(directory: Path) -> None:
    """Said before a broker and a worker are started for it. Raises click.UsageError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        why = "is no directory" if directory.is_file() else f"cannot be made: {exc.strerror}"
        raise click.UsageError(f"--dir {directory} {why}") from exc
    if not os.access(directory, os.W_OK | os.X_OK):
        raise click.UsageError(f"--dir {directory}: this user may not write there")
