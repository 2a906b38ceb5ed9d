"""Real workers as processes: started, killed, paused, continued, started again. Every life's log is kept."""

from __future__ import annotations

import ctypes
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SESSION, TRANSACTION = 4.0, 5.0
"""Seconds: timeouts of the group session and of transactions."""
PATIENCE = 120.0
"""Seconds until a state that must come counts as never coming; the machine may be busy."""

QUICK = {"SESSION_TIMEOUT": "2.5", "HEARTBEAT_INTERVAL": "0.8"}
"""Where workers only die: nobody waits longer than this for the dead."""

SETTINGS = {
    "SESSION_TIMEOUT": f"{SESSION:g}",
    "HEARTBEAT_INTERVAL": "1",
    "REBALANCE_TIMEOUT": "12",
    "TRANSACTION_TIMEOUT": f"{TRANSACTION:g}",
    "STABILITY_TIMEOUT": "60",
    "SHUTDOWN_TIMEOUT": "10",
    "DISCOVERY_INTERVAL": "1",
    "CHUNK_MAX_AGE": "0.2",
    "MAX_REPLAYS": "1000",
    "LOG_LEVEL": "info",
}


_LIBC = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: reaches stopped processes too


class Worker:
    """One life of a worker (or of another program under attack)."""

    def __init__(self, slot: str, command: list[str], env: Mapping[str, str], log: Path, stdin: bytes = b"") -> None:
        self.slot, self.log, self.failpoints = slot, log, env.get("MILLSTREAM_FAILPOINTS", "")
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call
            )
        assert self.process.stdin
        self.process.stdin.write(stdin)
        self.process.stdin.close()

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it lives."""
        return self.process.poll()

    @property
    def stopped(self) -> bool:
        """True while SIGSTOP holds it."""
        try:
            text = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return False
        return text.rpartition(")")[2].split()[0] == "T"

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.code is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait."""
        self.signal(signal.SIGKILL)
        self.process.wait(30)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Exit code."""
        return wait_until(lambda: (self.code is not None) and (self.code,), timeout, f"the end of {self}")[0]

    def wait_stopped(self, timeout: float = PATIENCE) -> None:
        """Until its failpoint has stopped it. AssertionError if it ends instead."""

        def look() -> bool:
            assert self.code is None, f"{self} ended with {self.code} instead of stopping: {self.tail()}"
            return self.stopped

        wait_until(look, timeout, f"SIGSTOP of {self}")

    def wait_log(self, text: str, timeout: float = PATIENCE) -> None:
        """Until its log holds the text."""

        def look() -> bool:
            found = text in self.log.read_text(errors="replace")
            assert found or self.code is None, f"{self} ended with {self.code} before it said {text!r}: {self.tail()}"
            return found

        wait_until(look, timeout, f"{text!r} in the log of {self}")

    def tail(self, lines: int = 40) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __str__(self) -> str:
        return f"worker {self.slot} ({self.failpoints or 'nothing armed'}, log {self.log})"


class Fleet:
    """The workers of one application. All randomness comes from `seed`, which is printed."""

    def __init__(self, home: Path, app: str, seed: int, **settings: object) -> None:
        self.home, self.app, self.seed = home, app, seed
        self.random = random.Random(seed)
        print(f"chaos: seed {seed}, app {app}, logs {home}", flush=True)
        self.hits_log = home / "failpoints.log"
        self.workers: dict[str, Worker] = {}
        self.lives = 0
        self.codes: Counter[int] = Counter()
        self.prefixes: dict[str, list[str]] = {}
        """Slot -> what stands before its commands: the host that it runs on."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MILLSTREAM_")}
        values = SETTINGS | {"DATA_DIR": home / "data"} | settings
        self.env = clean | {f"MILLSTREAM_{k}": str(v) for k, v in values.items()}
        self.env |= {"MILLSTREAM_CONFIG": os.devnull, "MILLSTREAM_FAILPOINT_LOG": str(self.hits_log)}
        self.env["PYTHONPATH"] = str(ROOT)
        home.mkdir(parents=True, exist_ok=True)

    def spawn(self, slot: str, failpoints: str = "", *, wipe: bool = False, **settings: object) -> Worker:
        """Start a life of the worker in `slot`; the one before must have ended. `wipe`: its tables on disk are lost."""
        before = self.workers.get(slot)
        if before is not None:
            assert before.code is not None, f"{before} still runs"
            self.codes[before.code] += 1
        if wipe:
            for path in Path(self.env["MILLSTREAM_DATA_DIR"]).glob(f"*/{slot}"):
                shutil.rmtree(path)
        self.workers[slot] = worker = self.run(
            slot, [str(BIN / "faust"), "-A", self.app, "worker", "--without-web"], failpoints, **settings
        )
        return worker

    def walk(self, names: list[str]) -> bool:
        """One step of a walk of workers a and b through failpoints; true once each has killed a worker.

        Whoever is dead comes back armed with all that are left. Not with one each: what a worker passes depends on the
        partitions it is given, and it might wait for ever.
        """
        hits = self.hits()
        left = [n for n in names if n not in hits]
        for slot in "ab":
            worker = self.workers.get(slot)
            if worker is None or worker.code is not None:
                self.spawn(slot, ",".join(f"{n}=kill" for n in left), wipe=self.random.random() < 0.25)
        return not left

    def run(
        self, slot: str, command: list[str], failpoints: str = "", stdin: bytes = b"", **settings: object
    ) -> Worker:
        """Start any program of ours with the settings of the fleet."""
        self.lives += 1
        env = self.env | {f"MILLSTREAM_{k}": str(v) for k, v in settings.items()}
        env |= {"MILLSTREAM_WORKER_SLOT": slot, "MILLSTREAM_SEED": str(self.random.randrange(1, 10**9))}
        if failpoints:
            env["MILLSTREAM_FAILPOINTS"] = failpoints
        return Worker(
            slot, [*self.prefixes.get(slot, ()), *command], env, self.home / f"{slot}-{self.lives:03d}.log", stdin
        )

    def hits(self) -> Counter[str]:
        """Failpoint -> how often it was reached while armed."""
        if not self.hits_log.exists():
            return Counter()
        return Counter(line.split()[2] for line in self.hits_log.read_text().splitlines())

    def terminate(self) -> dict[str, int]:
        """SIGTERM to all that live; slot -> exit code."""
        for worker in self.workers.values():
            worker.signal(signal.SIGCONT)
            worker.signal(signal.SIGTERM)
        return {slot: worker.wait(60) for slot, worker in self.workers.items()}

    def kill(self) -> None:
        """kill -9 to all."""
        for worker in self.workers.values():
            worker.kill()

    def failures(self) -> str:
        """Lines of all logs that say why a worker ended by itself."""
        found = []
        for log in sorted(self.home.glob("*.log")):
            for line in log.read_text(errors="replace").splitlines():
                if re.search(r"worker_failed|error_chain|^\w*Error", line):
                    found.append(f"{log.name}: {line[:400]}")
        return "\n".join(found[-30:])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
        if error is not None:
            print(f"chaos: FAILED with seed {self.seed}; {self.failures()}", flush=True)
