"""What may happen, as rules for Hypothesis to choose from. Each step is a method with plain arguments, so that a
failing run can be replayed and cut down by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from millstream.errors import RetryableSinkError
from tests.model.kernel import CLOCK, Request
from tests.model.worker import SimWorker
from tests.model.world import World

SLOTS = ("w0", "w1", "w2")
ARROWS = (
    "txn.end with changes", "txn.offsets with changes", "rocksdb", "file.put", "ch.insert",
    "txn.end", "txn.offsets", "txn.add", "txn.produce", "txn.init",  # commit
    "join", "offsets", "describe", "ends", "read",  # assignment
    "file.have", "ch.read", "ch.fence", "ch.delete",  # write
)  # fmt: skip
"""Every request that a worker can make: it may stop before each, or after."""

MAIN = ("txn.end with changes", "txn.offsets with changes", "file.put", "ch.insert")
"""Those at which most can go wrong: drawn as often as all others together."""

ARROW = st.one_of(st.sampled_from(MAIN), st.sampled_from(ARROWS))
ANY = st.sampled_from(SLOTS)
STEPS = {"taken": 0}
"""In this process, for the record."""


class Step(NamedTuple):
    """One step, to be taken again."""

    name: str
    arguments: dict[str, Any]
    text: str


class Idle(Exception):
    """The step makes no sense here (in a run that was cut down)."""


class Protocol(RuleBasedStateMachine):
    """Workers on one broker and two sinks."""

    strict = True
    """Look at the protocol's own rules too, not only at what the outside can see."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = CLOCK
        self.clock.now = 1_000_000.0
        self.world = self.make_world()
        self.steps: list[Step] = []

    def make_world(self) -> World:
        return World(self.clock)

    def taken(self, text: str, name: str, **arguments: Any) -> None:
        STEPS["taken"] += 1
        self.steps.append(Step(name, arguments, text))
        self.world.reap()

    def worker(self, slot: str) -> SimWorker:
        """The worker in this slot, or the next one that is there."""
        alive = sorted(self.world.workers)
        if not alive:
            raise Idle
        return self.world.workers[min((s for s in alive if s >= slot), default=alive[0])]

    def free(self, slot: str) -> str:
        """This slot, or the next one that is free."""
        free = [s for s in SLOTS if s not in self.world.workers]
        if not free:
            raise Idle
        return min((s for s in free if s >= slot), default=free[0])

    # ------------------------------------------------------------------ what may happen
    @initialize(rows=st.integers(1, 4), age=st.sampled_from([0.0, 1.0]))
    def begin(self, rows: int, age: float) -> None:
        """Hypothesis leaves some rules out of each run; one worker there is always."""
        self.start(slot="w0", rows=rows, age=age)

    @rule(partition=st.integers(0, 1), keys=st.text("ab!", min_size=1, max_size=5))
    def produce(self, partition: int, keys: str) -> None:
        self.world.produce(partition, keys)
        self.taken(f"records {keys} arrive in partition {partition}", "produce", partition=partition, keys=keys)

    @precondition(lambda self: len(self.world.workers) < len(SLOTS))
    @rule(slot=ANY, rows=st.integers(1, 4), age=st.sampled_from([0.0, 1.0]))
    def start(self, slot: str, rows: int, age: float) -> None:
        slot = self.free(slot)
        self.world.start(slot, rows, age)
        text = f"{slot} starts, with chunks of {rows} rows" + (f" or {age:.0f} s" if age else "")
        self.taken(text, "start", slot=slot, rows=rows, age=age)

    @precondition(lambda self: self.world.workers)
    @rule(slot=ANY, beats=st.booleans(), most=st.sampled_from([1000, 1]), last_first=st.booleans())
    def go_on(self, slot: str, beats: bool, most: int, last_first: bool) -> None:
        worker = self.worker(slot)
        worker.run(beats=beats, most=most, last_first=last_first)
        how = "" if beats else ", out of touch with the group,"
        how += (", fetching batch by batch," if most == 1 else "") + (", last request first," if last_first else "")
        text = f"{worker.slot} goes on{how} until it waits"
        self.taken(text, "go_on", slot=worker.slot, beats=beats, most=most, last_first=last_first)

    @precondition(lambda self: self.world.workers)
    @rule()
    def all_go_on(self) -> None:
        for slot in sorted(self.world.workers):
            self.world.workers[slot].run()
        self.taken("everybody goes on until all wait", "all_go_on")

    @precondition(lambda self: self.world.workers)
    @rule(slot=ANY, arrow=ARROW, after=st.booleans(), beats=st.booleans())
    def pause(self, slot: str, arrow: str, after: bool, beats: bool) -> None:
        """As far as an arrow, and paused there: before the request takes effect, or before its answer is read."""
        worker = self.worker(slot)
        self._pause(worker, arrow, after, beats)
        told = "" if beats else ", out of touch with the group,"
        text = f"{worker.slot}{told} goes on until it is paused {'after' if after else 'before'} {arrow}"
        self.taken(text, "pause", slot=worker.slot, arrow=arrow, after=after, beats=beats)

    @precondition(lambda self: self.world.workers)
    @rule(slot=ANY, arrow=ARROW, after=st.booleans())
    def stop(self, slot: str, arrow: str, after: bool) -> None:
        """SIGSTOP at an arrow, past the session timeout: the others take over, a new worker if there is none."""
        worker = self.worker(slot)
        self._pause(worker, arrow, after)
        self.world.reap()
        if worker.dead is None:
            self.world.expel(worker.slot)
        if self.world.workers.keys() <= {worker.slot}:
            self.world.start(self.free(worker.slot), 4, 0.0)
        for other in sorted(self.world.workers.keys() - {worker.slot}):
            self.world.workers[other].run()
        text = f"{worker.slot} is stopped {'after' if after else 'before'} {arrow}, and others take over"
        self.taken(text, "stop", slot=worker.slot, arrow=arrow, after=after)

    @precondition(lambda self: self.world.workers)
    @rule(slot=ANY)
    def thaw(self, slot: str) -> None:
        """SIGCONT: it goes on where it was, and before it hears of anything so do the others."""
        worker = self.worker(slot)
        worker.run(beats=False)
        for other in sorted(self.world.workers.keys() - {worker.slot}):
            self.world.workers[other].run(beats=False)
        self.taken(f"{worker.slot} is continued, and the others go on with their work", "thaw", slot=worker.slot)

    @staticmethod
    def _pause(worker: SimWorker, arrow: str, after: bool, beats: bool = True) -> None:
        worker.run(arrow, beats=beats)
        if after:
            for request in [r for r in worker.pending if r.kind == arrow]:
                if (answer := request.deliver()) is not None:
                    answer()

    @precondition(lambda self: self.world.workers)
    @rule(slot=ANY)
    def kill(self, slot: str) -> None:
        slot = self.worker(slot).slot
        self.world.kill(slot)
        self.taken(f"{slot} is killed", "kill", slot=slot)

    @precondition(lambda self: self.world.workers)
    @rule(slot=ANY)
    def expel(self, slot: str) -> None:
        slot = self.worker(slot).slot
        self.world.expel(slot)
        self.taken(f"the session of {slot} times out", "expel", slot=slot)

    @precondition(lambda self: self.world.dead_members)
    @rule()
    def bury(self) -> None:
        self.world.forget_the_dead()
        self.taken("the sessions of dead workers time out", "bury")

    @precondition(lambda self: any(t.state == "ongoing" for t in self.world.broker.txns.values()))
    @rule(slot=ANY)
    def time_out(self, slot: str) -> None:
        open_ = sorted(name for name, t in self.world.broker.txns.items() if t.state == "ongoing")
        if not open_:
            raise Idle
        name = min((n for n in open_ if n >= f"model-{slot}"), default=open_[0])
        self.world.broker.time_out(name)
        slot = name.removeprefix("model-")
        self.taken(f"the transaction of {slot} times out", "time_out", slot=slot)

    @precondition(lambda self: self.world.late)
    @rule(n=st.integers(0, 5))
    def arrive_late(self, n: int) -> None:
        if not self.world.late:
            raise Idle
        n %= len(self.world.late)
        request = self.world.late.pop(n)
        request.deliver()
        self.taken(f"a late {request.kind} of {request.process.name} arrives", "arrive_late", n=n)

    @precondition(lambda self: self.inserts)
    @rule()
    def give_up_insert(self) -> None:
        """The client gives up; the request is on the wire."""
        if not self.inserts:
            raise Idle
        request = self.inserts[0]
        request.take()
        self.world.late.append(request)
        request.process.answer(request, None, RetryableSinkError("timeout"))
        self.taken(f"the insert of {request.process.name} times out", "give_up_insert")

    @property
    def inserts(self) -> list[Request]:
        return [r for w in self.world.workers.values() for r in w.pending if r.kind == "ch.insert"]

    @precondition(lambda self: self.world.workers and not self.world.clickhouse.swallow)
    @rule()
    def swallow(self) -> None:
        self.world.clickhouse.swallow = True
        self.taken("ClickHouse will die between token and part", "swallow")

    @precondition(lambda self: self.world.workers and not self.world.broker.hold_markers)
    @rule()
    def hold_markers(self) -> None:
        self.world.broker.hold_markers = True
        self.taken("markers of transactions are held back", "hold_markers")

    @precondition(lambda self: self.world.broker.hold_markers)
    @rule()
    def write_markers(self) -> None:
        self.world.broker.hold_markers = False
        self.world.broker.write_markers()
        self.taken("markers are written", "write_markers")

    @precondition(lambda self: self.world.broker.markers)
    @rule(n=st.integers(0, 5))
    def write_marker(self, n: int) -> None:
        markers = self.world.broker.markers
        if not markers:
            raise Idle
        n %= len(markers)
        txn, tp = markers[n]
        self.world.broker.write_marker(txn, tp)
        self.taken(f"the marker of {txn.pid} in {tp.topic}-{tp.partition} is written", "write_marker", n=n)

    @precondition(lambda self: self.world.workers)
    @rule(seconds=st.sampled_from([1.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.taken(f"{seconds:.0f} s go by", "wait", seconds=seconds)

    @precondition(lambda self: self.world.disks.keys() - self.world.workers.keys())
    @rule(slot=ANY)
    def lose_disk(self, slot: str) -> None:
        slot = self.free(slot)
        self.world.disks.pop(slot, None)
        self.taken(f"the disk of {slot} is lost", "lose_disk", slot=slot)

    # ------------------------------------------------------------------ what must hold
    @invariant()
    def exactly_once(self) -> None:
        self.world.check()
        if self.strict:
            self.world.check_rules()

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.close()

    def close(self) -> None:
        for slot in sorted(self.world.workers):
            self.world.kill(slot)

    def settle(self) -> None:
        """Everybody wakes up, everything late arrives, work comes in; then one worker brings it all home."""
        world = self.world
        world.clickhouse.swallow = False
        world.broker.hold_markers = False
        world.broker.write_markers()
        for slot in sorted(world.workers):
            world.workers[slot].run(beats=False)
        while world.late:
            world.late.pop().deliver()
        self.exactly_once()
        world.forget_the_dead()
        for txid in world.broker.txns:
            world.broker.time_out(txid)
        for partition in (0, 1):
            world.produce(partition, "ab")
        for beats in (False, True, True, True):  # at first those work on that have partitions
            world.reap()
            self.clock.now += 1
            for slot in sorted(world.workers):
                world.workers[slot].run(beats=beats)
            world.forget_the_dead()
        self.exactly_once()
        for slot in sorted(world.workers):
            world.kill(slot)
        world.forget_the_dead()
        for txid in world.broker.txns:
            world.broker.time_out(txid)
        last = world.start("w0", 100, 0.0)
        for _ in range(60):
            last.run()
            self.exactly_once()
            world.reap()
            assert not last.dead, f"the last worker ended: {last.dead!r}"
            if world.finished:
                break
            self.clock.now += 20
        assert world.finished, f"no end in sight: {world.broker.group.offsets}, {[r.kind for r in last.pending]}"
        world.check_counts()


# ------------------------------------------------------------------ a failing run, cut down
def replay(machine: Callable[[], Protocol], steps: list[Step]) -> tuple[list[Step], str]:
    """Take the steps again, those that make sense: which ones did, and what was found at the end (or nothing)."""
    run = machine()
    try:
        run.exactly_once()
        for step in steps:
            with contextlib.suppress(Idle):
                getattr(run, step.name)(**step.arguments)
                run.exactly_once()
        run.settle()
    except AssertionError as e:
        return run.steps, str(e)
    finally:
        run.close()
    return run.steps, ""


def shrink(machine: Callable[[], Protocol], steps: list[Step]) -> tuple[list[Step], str]:
    """The steps without those that the failure does not need, each as simple as it may be."""
    steps, found = replay(machine, steps)
    assert found, "the run does not fail again: it is not deterministic"
    kind = found.split()[0]
    size = max(1, len(steps) // 2)
    while size:
        at = 0
        while at < len(steps):
            again, why = replay(machine, steps[:at] + steps[at + size :])
            if why.startswith(kind) and len(again) < len(steps):
                steps, found = again, why
            else:
                at += size
        size //= 2
    simpler = {"keys": "a", "most": 1000, "last_first": False, "rows": 1, "after": False, "age": 0.0, "beats": True}
    for at, step in enumerate(steps):
        for name in step.arguments.keys() & simpler.keys():
            changed = step._replace(arguments=step.arguments | {name: simpler[name]})
            again, why = replay(machine, [*steps[:at], changed, *steps[at + 1 :]])
            if why.startswith(kind) and len(again) <= len(steps):
                steps, found = again, why
                if len(again) < len(steps):
                    break
    return steps, found
