"""Named failpoints: a place in the code where a test may kill, pause or fail the process.

`MILLSTREAM_FAILPOINTS=name=action[:probability][,name=…]` arms them; actions are

- `kill`: SIGKILL of the own process, no cleanup runs;
- `stop`: SIGSTOP of the own process (the test sends SIGCONT), each time it is reached;
- `stop1`: the same, once in the life of the process;
- `error`: raise `FailpointError`;
- `enospc`, `eio`: raise the OSError of that name.

`MILLSTREAM_SEED` seeds the draw. A hit is appended to `MILLSTREAM_FAILPOINT_LOG` first, so that a test can count it.
With the variable unset `failpoint` is a function that does nothing.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from millstream.errors import ConfigError

KNOWN: dict[str, str] = {}
"""Name -> where it stands. Filled by `declare`, so that a test can go through all of them."""


class FailpointError(Exception):
    """Raised by a failpoint armed with `error`: stands for any error nobody expected."""


def declare(name: str, where: str) -> str:
    """Register a failpoint's name at import and return it."""
    if KNOWN.setdefault(name, where) != where:
        raise ValueError(f"failpoint {name} is declared twice: {KNOWN[name]!r} and {where!r}")
    return name


class _Armed:
    def __init__(self, text: str, seed: int, log: str | None) -> None:
        self.actions: dict[str, tuple[str, float]] = {}
        self.random, self.log, self.lock = random.Random(seed), log, threading.Lock()
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, _, action = part.partition("=")
            action, _, probability = action.partition(":")
            if action not in _ACTIONS:
                raise ConfigError(f"MILLSTREAM_FAILPOINTS: {part!r}: the action must be one of {', '.join(_ACTIONS)}")
            self.actions[name] = (action, float(probability or 1))

    def __call__(self, name: str) -> None:
        with self.lock:
            action, probability = self.actions.get(name, ("", 0.0))
            if not action or self.random.random() >= probability:
                return
            if action == "stop1":
                del self.actions[name]
            if self.log:
                with Path(self.log).open("a") as f:
                    f.write(f"{time.time():.3f} {os.getpid()} {name} {action}\n")
        _ACTIONS[action](name)


def _signal(number: signal.Signals) -> Callable[[str], None]:
    return lambda _name: os.kill(os.getpid(), number)


def _raise(make: Callable[[str], Exception]) -> Callable[[str], None]:
    def act(name: str) -> None:
        raise make(name)

    return act


_ACTIONS: dict[str, Callable[[str], None]] = {
    "kill": _signal(signal.SIGKILL),
    "stop": _signal(signal.SIGSTOP),
    "stop1": _signal(signal.SIGSTOP),
    "error": _raise(FailpointError),
    "enospc": _raise(lambda name: OSError(errno.ENOSPC, f"No space left on device (failpoint {name})")),
    "eio": _raise(lambda name: OSError(errno.EIO, f"Input/output error (failpoint {name})")),
}


def _off(_name: str) -> None:
    return None


def arm(text: str, seed: int = 0, log: str | None = None) -> None:
    """Arm failpoints from a text as in `MILLSTREAM_FAILPOINTS`; an empty text disarms all (for tests)."""
    global _reach  # noqa: PLW0603
    _reach = _Armed(text, seed, log) if text else _off


def failpoint(name: str) -> None:
    """The named place in the code has been reached."""
    _reach(name)


_reach: Callable[[str], None] = _off
arm(
    os.environ.get("MILLSTREAM_FAILPOINTS", ""),
    int(os.environ.get("MILLSTREAM_SEED", "0")) or os.getpid(),
    os.environ.get("MILLSTREAM_FAILPOINT_LOG"),
)
