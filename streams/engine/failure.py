"""How a worker ends when it cannot go on: at once, uncommitted, non-zero. Its successor recovers (rule 11)."""

from __future__ import annotations

import concurrent.futures
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from millstream import kafka_security
from millstream.errors import BrokerError, ConfigError, MillstreamError
from millstream.logs import error_chain, get_logger

EXIT_FAILED = 70
"""EX_SOFTWARE: an error nobody may continue past."""
EXIT_STUCK = 75
"""EX_TEMPFAIL: something did not end in time."""

log = get_logger(__name__)


def die(error: BaseException, code: int = EXIT_FAILED) -> None:
    """Log the error and end the process without running any clean-up that could commit or publish something."""
    mend = "mend that, " if isinstance(error, ConfigError) else ""
    log.critical(
        "worker_failed",
        exc_info=None if isinstance(error, MillstreamError) else error,  # its text says all there is to know
        exit_code=code,
        error_chain=error_chain(error),
        description=f"stopped without committing; {mend}start it again and it resumes at the last commit",
    )
    if code == EXIT_STUCK:
        faulthandler.dump_traceback(sys.__stderr__ or 2)  # where each thread stands: what did not end is among them
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def unreachable(config: Mapping[str, Any], cause: BaseException, why: str = "") -> BrokerError:
    """What to say where a worker cannot start without a broker; `config`: librdkafka's, `why`: if that is known."""
    error = BrokerError(why or kafka_security.unanswered(config, []))
    error.__cause__ = cause.with_traceback(None)  # where in a library it arose helps nobody who starts a worker
    return error


def end_within(seconds: float, what: str) -> None:
    """End the process if it still runs after so many seconds: an orderly stop must not hang for ever (T22)."""

    def watch() -> None:
        time.sleep(seconds)
        die(TimeoutError(f"{what} took longer than {seconds:.0f} s"), EXIT_STUCK)

    threading.Thread(target=watch, name="end-within", daemon=True).start()


class CountingExecutor(concurrent.futures.ThreadPoolExecutor):
    """The loop's default executor: knows whether any thread still works on what a cancelled task began (hole l)."""

    def __init__(self, max_workers: int) -> None:
        super().__init__(max_workers, thread_name_prefix="work")
        self._active = 0
        self._idle = threading.Condition()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """As in the base class, counted."""
        with self._idle:
            self._active += 1
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(self._finished)
        return future

    def wait_idle(self, timeout: float) -> bool:
        """Block until no submitted call runs; False after `timeout` seconds."""
        with self._idle:
            return self._idle.wait_for(lambda: self._active == 0, timeout)

    def _finished(self, _future: concurrent.futures.Future[Any]) -> None:
        with self._idle:
            self._active -= 1
            if self._active == 0:
                self._idle.notify_all()
