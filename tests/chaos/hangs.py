"""In forked lives: a worker whose orderly stop takes too long says what its tasks wait for, just before it is ended."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any


def install() -> None:
    """Before the worker starts."""
    from streams.engine import app

    end_within = app.end_within

    def watched(seconds: float, what: str) -> None:
        threading.Thread(target=_watch, args=(seconds - 2,), name="hangs", daemon=True).start()
        end_within(seconds, what)

    app.end_within = watched


def _watch(seconds: float) -> None:
    time.sleep(seconds)
    for task in list(asyncio.tasks._all_tasks):  # type: ignore[attr-defined] # of the loops of all threads
        if not task.done():
            told = f"loop {id(task.get_loop()):x}, cancelled {task.cancelling()} times: {_waits(task)}"
            print(f"chaos: hangs: {told}", file=sys.__stdout__, flush=True)


def _waits(task: asyncio.Task[Any]) -> str:
    """The task's coroutines, outermost first, each with the line that it stands at."""
    chain, at = [], task.get_coro()
    while at is not None:
        frame = getattr(at, "cr_frame", None)
        chain.append(f"{getattr(at, '__qualname__', at)}{f':{frame.f_lineno}' if frame else ''}")
        at = getattr(at, "cr_await", None)
    return " > ".join(chain)
