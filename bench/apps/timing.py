"""An App whose clock starts when its consumer may fetch."""

from __future__ import annotations

from typing import Any

from bench.clock import Clock
from millstream.settings import Settings
from streams.engine.app import App
from streams.engine.consumer import Consumer


def timed_app() -> tuple[App, Clock]:
    """The app, and the clock to give rows to."""
    clock = Clock.from_env()
    resume_flow = Consumer.resume_flow

    def started(self: Any) -> None:
        clock.start()
        resume_flow(self)

    Consumer.resume_flow = started  # type: ignore[method-assign]
    return App(Settings()), clock
