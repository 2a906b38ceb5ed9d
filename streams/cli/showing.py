"""What commands put on the screen: bars, tables, what to do next."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table


def bars(*more: ProgressColumn) -> Progress:
    """Progress bars on stderr, with columns `more` behind the percentage."""
    return Progress(
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TaskProgressColumn("{task.percentage:>3.0f} %"),  # nothing where the total is not known
        *more,
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table; the first column is text, integers are right-aligned and have their thousands set apart."""
    rows = list(rows)
    shown = Table(title=title, title_justify="left")
    for at, name in enumerate(columns):
        numbers = at > 0 and all(isinstance(row[at], int) for row in rows)
        shown.add_column(name, justify="right" if numbers else "left")
    for row in rows:
        shown.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    return shown


def next_steps(out: Console, commands: Iterable[str]) -> None:
    """How to go on; the commands work as they are printed, also where `.venv/bin` is not in PATH yet."""
    out.print("Try next:", style="bold")
    path = [] if shutil.which("millstream") else [f'export PATH="{Path(sys.executable).parent}:$PATH"']
    for command in [*path, *commands]:
        out.print(f"  {command}", soft_wrap=True, highlight=False, markup=False)
