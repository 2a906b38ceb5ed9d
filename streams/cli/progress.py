"""Progress bars, on stderr."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from rich.filesize import decimal
from rich.progress import TextColumn

from sources.feed import FeedJob
from streams.cli.showing import bars


def size_of(jobs: Sequence[FeedJob]) -> int | None:
    """Bytes of all dumps; None where a Redis has one of them, whose size nobody knows beforehand."""
    if any(job.redis is not None for job in jobs):
        return None
    return sum(path.stat().st_size for job in jobs if (path := Path(job.path)).exists())


class DumpProgress:
    """How far feeding and storing are: the bar is full when all rows of all dumps are in the sinks."""

    def __init__(self, total_bytes: int | None, instances: int) -> None:
        self._total, self._instances = total_bytes, instances
        self.reports = 0
        """How often a feeder has told of itself."""
        self._fed: dict[str, tuple[int, int]] = {}
        self._stored = self._done = 0
        self._began = 0.0
        self._bar = bars(
            TextColumn("{task.fields[share]}"),
            TextColumn("{task.fields[records]:,} records"),
            TextColumn("{task.fields[rate]:,}/s"),
            TextColumn("instances {task.fields[done]}"),
        )
        total = None if total_bytes is None else 1.0
        self._task = self._bar.add_task("starting", total=total, share="", records=0, rate=0, done=f"0/{instances}")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def fed_rows(self) -> int:
        """Rows that are in Kafka, or about to be."""
        return sum(rows for rows, _ in self._fed.values())

    def fed(self, instance: str, rows: int, position: int) -> None:
        """A feeder is so far: rows, and bytes of its file."""
        self.reports += 1
        self._began = self._began or time.monotonic()
        self._fed[instance] = rows, position
        self._show()

    def stored(self, rows: int, done: int) -> None:
        """So many rows are in the sinks, so many instances done."""
        self._stored, self._done = rows, done
        self._show()

    def tell(self, text: str) -> None:
        """A line above the bar; on a pipe, a line."""
        self._bar.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def finished(self) -> None:
        """All is there."""
        self._bar.update(self._task, total=1.0, completed=1.0)

    def _show(self) -> None:
        read = sum(at for _, at in self._fed.values())
        kept = min(1.0, self._stored / self.fed_rows) if self.fed_rows else 0.0
        through = None if self._total is None else read / max(1, self._total) * kept
        seconds = time.monotonic() - self._began if self._began else 0.0
        self._bar.update(
            self._task,
            description="dump" if self._stored or self._done else "starting",
            completed=through,
            share=f"{decimal(read)} read" if through is None else "",
            records=self._stored,
            rate=round(self._stored / seconds) if seconds > 0.5 else 0,
            done=f"{self._done}/{self._instances}",
        )


class ReplayProgress:
    """How far a replay, or a look at all events, is in its source."""

    def __init__(self, name: str = "replay") -> None:
        self._bar = bars(TextColumn("{task.fields[records]:,} events"), TextColumn("{task.fields[rate]:,}/s"))
        self._task = self._bar.add_task(name, total=None, records=0, rate=0)
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, total: int, done: int, records: int) -> None:
        """Places in all, places done, records read."""
        seconds = time.monotonic() - self._began
        self._bar.update(
            self._task,
            total=max(1, total),
            completed=done if total else 1,
            records=records,
            rate=round(records / seconds) if seconds > 0.5 else 0,
        )
