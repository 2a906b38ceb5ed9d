"""An App whose clock runs from when its consumer may fetch to the commit of its last chunk."""

from __future__ import annotations

from typing import Any

from bench.clock import Clock
from millstream.settings import Settings
from streams.engine.app import App
from streams.engine.consumer import Consumer
from streams.engine.cycle import CommitCycle


def timed_app() -> App:
    """The app; the rows of committed chunks are counted."""
    time_commits()
    return App(Settings())


def time_commits() -> None:
    """The clock of whatever app is built from now on."""
    clock = Clock.from_env()
    resume_flow, commit = Consumer.resume_flow, CommitCycle.commit

    def started(self: Any) -> None:
        clock.start()
        resume_flow(self)

    async def committed(self: Any, txn: Any, applies: Any, member: Any, finished: Any) -> bool:
        done = await commit(self, txn, applies, member, finished)
        if done:
            clock.add(sum(chunk.rows for _tp, chunk in finished))
        return done

    Consumer.resume_flow = started  # type: ignore[method-assign]
    CommitCycle.commit = committed  # type: ignore[method-assign]
