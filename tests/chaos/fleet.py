"""Real workers as processes: started, killed, paused, continued, started again. Every life's log is kept."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tests.chaos import forks
from tests.chaos.forks import ROOT
from tests.support.waiting import wait_until

BIN = Path(sys.executable).parent
SESSION, TRANSACTION = 4.0, 5.0
"""Seconds: timeouts of the group session and of transactions."""
PATIENCE = 120.0
"""Seconds until a state that must come counts as never coming; the machine may be busy."""

BASE = {
    "DISCOVERY_INTERVAL": "1",
    "MAX_REPLAYS": "1000",
    "LOG_LEVEL": "info",
}
SHORT = {
    "SESSION_TIMEOUT": f"{SESSION:g}",
    "HEARTBEAT_INTERVAL": "1",
    "REBALANCE_TIMEOUT": "12",
    "TRANSACTION_TIMEOUT": f"{TRANSACTION:g}",
    "STABILITY_TIMEOUT": "60",
    "SHUTDOWN_TIMEOUT": "10",
    "CHUNK_MAX_AGE": "0.2",
}
QUICK = SHORT | {
    "SESSION_TIMEOUT": "1.5",
    "HEARTBEAT_INTERVAL": "0.5",
    "REBALANCE_TIMEOUT": "8",
    "TRANSACTION_TIMEOUT": "4",
}
"""Where workers die often: nobody waits longer than this for the dead."""
PACES: dict[str, dict[str, str]] = {"quick": QUICK, "short": SHORT, "plain": {}}
"""Timeouts and limits; plain: as they are by default."""

MANY = 10
"""Failpoints that are many to be left in a walk."""
REAL_EVERY = 8
"""One life in so many starts as a user starts it, the first one always; the others are forked (forks.py)."""


class Process(Protocol):
    """What is used of Popen."""

    pid: int

    def poll(self) -> int | None: ...
    def send_signal(self, number: int, /) -> None: ...
    def wait(self, timeout: float) -> int: ...


class Worker:
    """One life of a worker (or of another program under attack)."""

    def __init__(self, slot: str, process: Process, log: Path, failpoints: str) -> None:
        self.slot, self.process, self.log, self.failpoints = slot, process, log, failpoints

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

    def failure(self) -> str:
        """Why it ended by itself, as it said: `Type: text` of the error. Empty if it did not say so."""
        said = [line for line in self.log.read_text(errors="replace").splitlines() if "=worker_failed " in line]
        found = re.search(r"""error_chain=\[(['"])(.*?)\1[,\]]""", said[-1]) if said else None
        return found[2] if found else ""

    def report(self) -> str:
        """How it ended."""
        return f"{self} ended with {self.code}: {self.tail()}"

    def __str__(self) -> str:
        return f"worker {self.slot} ({self.failpoints or 'nothing armed'}, log {self.log})"


def _program(module: str) -> list[str]:
    return [str(BIN / "faust")] if module == "faust" else [sys.executable, "-m", module]


def _started(command: list[str], env: Mapping[str, str], log: Path, stdin: bytes) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=forks.die_with_parent,  # noqa: PLW1509 - one system call
        )
    assert process.stdin
    process.stdin.write(stdin)
    process.stdin.close()
    return process


class Fleet:
    """The workers of one application. All randomness comes from `seed`, which is printed.

    `pace` says which timeouts they have, `settings` what else differs.
    """

    def __init__(self, home: Path, app: str, seed: int, pace: str, **settings: object) -> None:
        self.home, self.app, self.seed = home, app, seed
        self.random = random.Random(seed)
        print(f"chaos: seed {seed}, app {app}, {pace} timeouts, logs {home}", flush=True)
        self.hits_log = home / "failpoints.log"
        self.workers: dict[str, Worker] = {}
        self.lives = 0
        self.codes: Counter[int] = Counter()
        self.prefixes: dict[str, list[str]] = {}
        """Slot -> what stands before its commands: the host that it runs on."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MILLSTREAM_")}
        values = BASE | PACES[pace] | {"DATA_DIR": home / "data"} | settings
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
        arguments = ["-A", self.app, "worker", "--without-web"]
        self.workers[slot] = worker = self.run(slot, "faust", arguments, failpoints, **settings)
        return worker

    def walk(self, names: list[str]) -> bool:
        """One step of a walk of workers a and b through failpoints; true once each has killed a worker.

        Whoever is dead comes back armed with all that are left, or half of them while they are many, lest both die at
        the same. Not with one each: what a worker passes depends on the partitions it is given, and it might wait for
        ever.
        """
        hits = self.hits()
        left = [n for n in names if n not in hits]
        for slot in "ab":
            worker = self.workers.get(slot)
            if worker is None or worker.code is not None:
                armed = left if len(left) <= MANY else self.random.sample(left, len(left) // 2)
                self.spawn(slot, ",".join(f"{n}=kill" for n in armed), wipe=self.random.random() < 0.25)
        return not left

    def run(
        self,
        slot: str,
        module: str,
        arguments: Sequence[str] = (),
        failpoints: str = "",
        stdin: bytes = b"",
        **settings: object,
    ) -> Worker:
        """Start `python -m module arguments`, or `faust arguments`, with the settings of the fleet."""
        env = self.env | {f"MILLSTREAM_{k}": str(v) for k, v in settings.items()}
        env |= {"MILLSTREAM_WORKER_SLOT": slot, "MILLSTREAM_SEED": str(self.random.randrange(1, 10**9))}
        if failpoints:
            env["MILLSTREAM_FAILPOINTS"] = failpoints
        log = self.home / f"{slot}-{self.lives + 1:03d}.log"
        process: Process
        prefix = self.prefixes.get(slot)
        if prefix or self.lives % REAL_EVERY == 0:
            process = _started([*(prefix or ()), *_program(module), *arguments], env, log, stdin)
        else:
            process = forks.shared().start(module, arguments, env, log, stdin)
        self.lives += 1
        return Worker(slot, process, log, failpoints)

    def hits(self) -> Counter[str]:
        """Failpoint -> how often it was reached while armed."""
        if not self.hits_log.exists():
            return Counter()
        return Counter(line.split()[2] for line in self.hits_log.read_text().splitlines())

    def killed_by(self, worker: Worker) -> str | None:
        """The failpoint that killed it, if one did."""
        if worker.code != -signal.SIGKILL or not self.hits_log.exists():
            return None
        for line in reversed(self.hits_log.read_text().splitlines()):
            _, pid, name, action = line.split()
            if int(pid) == worker.process.pid and action == "kill":
                return name
        return None

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
