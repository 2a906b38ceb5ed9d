"""Random attack on a fleet: deaths and pauses, at failpoints and anywhere else, and workers that come and go."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable

from tests.chaos.fleet import SESSION, TRANSACTION, Fleet, Worker

ALLOWED = {0, 70, 75, -signal.SIGKILL, -signal.SIGTERM}
"""Exit codes a worker may have: an orderly stop, an error nobody may continue past, stuck, killed, told to stop before
it listened to signals."""
LONGEST_PAUSE = SESSION + TRANSACTION + 6


class Storm:
    """Call `tick` often. Workers a and b are always there, c now and then. `broker` kills and restarts the broker."""

    def __init__(self, fleet: Fleet, names: list[str], broker: Callable[[], None] | None = None) -> None:
        self._fleet, self._names, self._broker = fleet, names, broker
        self._random = fleet.random
        self._wake: dict[int, float] = {}
        self._next = 0.0
        self.counts: Counter[str] = Counter()

    def tick(self) -> None:
        """One look at all workers, and a blow if it is time for one."""
        now = time.monotonic()
        for slot in "ab":
            worker = self._fleet.workers.get(slot)
            if worker is None or worker.code is not None:
                if worker is not None:
                    self._ended(worker)
                self._fleet.spawn(slot, self._armed(), wipe=self._random.random() < 0.15)
        for worker in self._fleet.workers.values():
            if worker.code is None and worker.stopped:
                until = self._wake.setdefault(worker.process.pid, now + self._random.uniform(1, LONGEST_PAUSE))
                if now > until:
                    del self._wake[worker.process.pid]
                    self.counts["stops"] += 1
                    worker.signal(signal.SIGCONT)
        if now > self._next:
            if self._next:
                self._strike()
            self._next = now + self._random.uniform(2, 9)

    def end(self) -> None:
        """Everything is killed."""
        for worker in self._fleet.workers.values():
            worker.kill()
            self._ended(worker)

    def _armed(self) -> str:
        """What the next life is armed with: one failpoint for sure, many with small chances, or none."""
        way = self._random.random()
        if way < 0.35:
            return f"{self._random.choice(self._names)}={self._random.choice(('kill', 'kill', 'stop1'))}"
        if way < 0.85:
            chance = self._random.choice((0.01, 0.05, 0.2))
            some = self._random.sample(self._names, max(1, len(self._names) // 2))
            return ",".join(f"{n}={self._random.choice(('kill', 'kill', 'kill', 'stop1'))}:{chance}" for n in some)
        return ""

    def _strike(self) -> None:
        way, third = self._random.random(), self._fleet.workers.get("c")
        if self._broker is not None and way < 0.06:
            self.counts["broker kills"] += 1
            self._broker()
        elif way < 0.45:
            self._victim().kill()
            self.counts["kills"] += 1
        elif way < 0.65:
            self._victim().signal(signal.SIGSTOP)
        elif third is None or third.code is not None:
            if third is not None:
                self._ended(third)
            self._fleet.spawn("c", self._armed())
            self.counts["joins"] += 1
        else:
            third.signal(signal.SIGTERM)
            self.counts["leaves"] += 1

    def _victim(self) -> Worker:
        return self._fleet.workers[self._random.choice("ab")]

    def _ended(self, worker: Worker) -> None:
        if worker.code == 1 and self.counts["broker kills"] and "KafkaConnectionError" in worker.tail():
            return  # it was being started while the broker was away
        assert worker.code in ALLOWED, f"seed {self._fleet.seed}: {worker} ended with {worker.code}: {worker.tail()}"
