"""Random attack on one application: each life of a worker is dealt how it will end, and dies or pauses accordingly."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos.fleet import Worker
from tests.chaos.scenario import Scenario
from tests.chaos.tally import Tally

AT_WORK = "operation=partitions_assigned"
"""In the log of a worker that has joined its group."""
LATEST = 20.0
"""Seconds after its start at which a worker is struck even if it has not joined."""
FAILED, STUCK = 70, 75
LEGITIMATE = re.compile(
    r"(Kafka|Broker|Timeout|Undecided|Unknown|Request|Node|Group|Coordinator)\w*(Error|Exception)"
    r"|SinkError: .*: this worker lost "
)
"""Errors that end a worker where a broker, a session, a transaction or its place before a sink's fence was lost to it
(seed 518616013)."""


@dataclass
class Life:
    """One life of a worker."""

    worker: Worker
    blow: str
    """kill, pause or leave: what meets it if no failpoint does."""
    due: float | None
    """When the blow falls; None while it has not joined."""
    delay: float
    """From joining to the blow, seconds."""
    broker_kills: int
    """Kills of the broker before this life."""
    began: float = field(default_factory=time.monotonic)
    at_work: bool = False
    killed: bool = False
    left: bool = False
    paused: bool = False
    pause: tuple[str, float] | None = None
    """While it is stopped: how long this pause is, and when it ends."""


class Storm:
    """Call `tick` often; `end` kills all. AssertionError: a worker ended in a way that nothing explains.

    `restless` groups are rebalanced all the time: workers leave and join in quick turns.
    """

    def __init__(self, scenario: Scenario, names: Sequence[str], tally: Tally, workers: int, restless: bool) -> None:
        self._scenario, self._fleet, self._names, self._tally = scenario, scenario.fleet, names, tally
        self._random = self._fleet.random
        self.slots, self._restless = "abc"[:workers], restless
        self._lives: dict[str, Life] = {}
        self._back: dict[str, float] = {}
        env = self._fleet.env
        self._session = float(env.get("MILLSTREAM_SESSION_TIMEOUT", 30))
        self._transaction = float(env.get("MILLSTREAM_TRANSACTION_TIMEOUT", 15))

    def tick(self) -> None:
        """One look at all workers."""
        now = time.monotonic()
        for slot in self.slots:
            life = self._lives.get(slot)
            if life is not None and life.worker.code is not None:
                del self._lives[slot]
                self._ended(life)
                self._back[slot] = now + (self._random.uniform(0, 2 * self._session) if self._chance(0.15) else 0)
                life = None
            if life is None:
                if now >= self._back.get(slot, 0):
                    self._lives[slot] = self._begin(slot)
            elif life.worker.stopped:
                self._hold(life, now)
            elif self._due(life, now):
                self._strike(life)

    def end(self) -> None:
        """Everything is killed."""
        for life in self._lives.values():
            if life.worker.code is None:
                life.worker.kill()
            else:
                self._ended(life)
        self._lives.clear()

    # ------------------------------------------------------------------ dealing
    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _begin(self, slot: str) -> Life:
        wipe = self._chance(0.15)
        self._tally.counts["tables wiped"] += wipe
        self._tally.counts["lives"] += 1
        armed = self._armed()
        worker = self._fleet.spawn(slot, armed, wipe=wipe)
        leave = 8 if self._restless else 2
        blow = self._random.choices(["kill", "pause", "leave"], [10, 4, leave])[0]
        # Who is armed gets the time to reach a failpoint.
        delay = self._random.uniform(3, 9) if armed else self._random.uniform(0, 1.5 if self._restless else 4)
        at_once = time.monotonic() + self._random.uniform(0, 1.5) if self._chance(0.04) else None
        return Life(worker, blow, at_once, delay, self._tally.counts["broker kills"])

    def _armed(self) -> str:
        """Failpoints of a life, mostly those that killed least. All of them would never let it get far, one alone may
        not be on its way."""
        if self._chance(0.35):
            return ""
        wanted = self._tally.scarce(self._names, self._scenario.kinds, self._random)
        some = self._random.sample(wanted[: max(4, len(wanted) // 3)], self._random.choice((1, 2, 3, 4)))
        chance = self._random.choice((1, 1, 1, 0.3))
        return ",".join(f"{n}={'stop1' if self._chance(0.15) else 'kill'}:{chance}" for n in some)

    def _pause(self, now: float) -> tuple[str, float]:
        """Shorter than the session timeout, longer than it, or longer than both timeouts."""
        what = self._random.choice(("short", "past session", "past session and transaction"))
        shortest, longest = {
            "short": (0.1 * self._session, 0.6 * self._session),
            "past session": (1.1 * self._session, 1.6 * self._session),
        }.get(what, (max(self._session, self._transaction) + 2, self._session + self._transaction + 3))
        return what, now + self._random.uniform(shortest, longest)

    # ------------------------------------------------------------------ blows
    def _hold(self, life: Life, now: float) -> None:
        if life.pause is None:  # a failpoint stopped it, or we did just now
            life.pause = self._pause(now)
        elif now > life.pause[1]:
            self._tally.pauses[life.pause[0]] += 1
            life.worker.signal(signal.SIGCONT)
            life.pause, life.paused, life.blow = None, True, "kill"
            life.due = now + self._random.uniform(0.5, 4)

    def _due(self, life: Life, now: float) -> bool:
        if life.left:
            return False
        if not life.at_work and AT_WORK in life.worker.log.read_text(errors="replace"):
            life.at_work = True
            life.due = life.due or now + life.delay
        return now > (life.due or life.began + LATEST)

    def _strike(self, life: Life) -> None:
        if life.blow == "kill":
            life.killed = True
            life.worker.kill()
        elif life.blow == "pause":
            life.worker.signal(signal.SIGSTOP)
        else:
            life.left = True
            life.worker.signal(signal.SIGTERM)

    def _ended(self, life: Life) -> None:
        worker, tally = life.worker, self._tally
        code = worker.code
        tally.codes[str(code)] += 1
        failpoint = self._fleet.killed_by(worker)
        if failpoint is not None:
            tally.died_at(self._scenario.kinds, failpoint)
        elif code == -signal.SIGKILL:
            assert life.killed, f"nobody killed it: {worker.report()}"
            tally.counts["kills" if life.at_work else "kills while starting"] += 1
        elif code in (0, -signal.SIGTERM):  # the latter before it listened to signals
            assert life.left, f"seed {self._fleet.seed}: {worker.report()}"
            tally.counts["leaves"] += 1
        else:
            assert code in (FAILED, STUCK), f"seed {self._fleet.seed}: {worker.report()}"
            reason = worker.failure()
            tally.ends[reason[:120]] += 1
            if code == STUCK:  # its log may go with an exact round, and says what it waited for (hangs.py)
                print(f"chaos: stuck: {worker}: {worker.tail(120)}", flush=True)
            # A pause uses up the time that a thread has to end in (seed 561573820). So does a request to a broker that
            # is away: the timeouts of rebalances here are shorter than those of requests (seed 518242736).
            held_up = life.paused or self._tally.counts["broker kills"] > life.broker_kills
            expected = LEGITIMATE.match(reason) or (held_up and code == STUCK)
            assert expected, f"seed {self._fleet.seed}: {reason}: {worker.report()}"
