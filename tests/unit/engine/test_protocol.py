"""The protocol under any interleaving: workers start, die at any point, or go on after losing their partitions.

The real partition states and commit cycle, over a log, a group and a sink in memory. Whatever happens, the sink holds
every record at most once at any time, and exactly once in the end; so do the output records. Two controls show that
the model would see it.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from millstream.cluster import TP
from millstream.errors import SinkError
from sinks.memory import MemorySink
from streams.engine.partition import Limits
from tests.unit.engine.world import BAD, Worker, World

PARTITIONS = [TP("t", 0), TP("t", 1)]
LIMITS = st.builds(Limits, st.integers(1, 5), st.sampled_from([3, 1000]), st.sampled_from([0.0, math.inf]))
PROFILE = settings(
    max_examples=120, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)

SEARCH = settings(PROFILE, max_examples=3000, phases=[Phase.generate], report_multiple_bugs=False, print_blob=False)
"""For the controls: the first failure will do."""


class Protocol(RuleBasedStateMachine):
    plans, fenced = True, True

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World(PARTITIONS, fenced=self.fenced)
        self.workers: list[Worker] = []
        self.made = 0
        self.together = False

    def run(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    def new_worker(self, limits: Limits, *, gated: bool = True) -> Worker:
        worker = Worker(self.world, limits, plans=self.plans, gated=gated, together=self.together)
        assert self.run(worker.join())
        return worker

    @property
    def alive(self) -> list[Worker]:
        return [w for w in self.workers if not w.dead]

    @initialize(together=st.booleans())
    def choose(self, together: bool) -> None:
        self.together = together

    @rule(tp=st.sampled_from(PARTITIONS), n=st.integers(1, 7), skip=st.integers(0, 1), bad=st.booleans())
    def produce(self, tp: TP, n: int, skip: int, bad: bool) -> None:
        values = [b"%d" % (self.made + i) for i in range(n)]
        self.made += n
        self.world.logs[tp].append([BAD, *values] if bad else values, skip=skip)

    @precondition(lambda self: len(self.alive) < 3)
    @rule(limits=LIMITS)
    def a_worker_takes_over(self, limits: Limits) -> None:
        """The former owner, if it lives, is not told: it is paused, or cut off."""
        self.workers.append(self.new_worker(limits))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), tp=st.sampled_from(PARTITIONS), batches=st.integers(1, 3))
    def fetch(self, data: st.DataObject, tp: TP, batches: int) -> None:
        data.draw(st.sampled_from(self.alive)).fetch(tp, batches)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def commit_cycle(self, data: st.DataObject) -> None:
        self.run(data.draw(st.sampled_from(self.alive)).round())

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        self.run(data.draw(st.sampled_from(self.alive)).work())

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), fails_after=st.booleans())
    def the_sink_fails(self, data: st.DataObject, fails_after: bool) -> None:
        """Before the chunk is in, or after: the worker ends either way (T1, T32)."""
        self.world.sink.fail("write_chunk", SinkError("disk full"), after=fails_after)
        self.run(data.draw(st.sampled_from(self.alive)).work())
        self.world.sink._faults.clear()

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), where=st.sampled_from(["before", "after"]))
    def die_in_commit(self, data: st.DataObject, where: str) -> None:
        worker = data.draw(st.sampled_from(self.alive))
        worker.die_in_commit = where
        self.run(worker.round())
        self.run(worker.close())

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        self.run(data.draw(st.sampled_from(self.alive)).close())

    @invariant()
    def nothing_is_there_twice_and_nothing_that_was_not_sent(self) -> None:
        for tp in PARTITIONS:
            sent = {(r.offset, r.value) for r in self.world.logs[tp].records if r.value != BAD}
            sunk = self.world.sunk(tp)
            assert len(sunk) == len(set(sunk)), f"doubled: {sunk}"
            assert set(sunk) <= sent
        values = [o.value for o in self.world.outputs if o.topic == "out"]
        assert len(values) == len(set(values)), f"doubled: {values}"

    @invariant()
    def what_is_committed_is_in_the_sink(self) -> None:
        for tp, (offset, _) in self.world.offsets.items():
            sent = [(r.offset, r.value) for r in self.world.logs[tp].records if r.offset < offset and r.value != BAD]
            missing = set(sent) - set(self.world.sunk(tp))
            assert not missing, f"lost: {missing}"

    def teardown(self) -> None:
        """A last worker, undisturbed, brings everything home; the others go on being zombies for a while."""
        try:
            last = self.new_worker(Limits(1000, 10**6, 0.0), gated=False)
            for zombie in self.alive:
                self.run(zombie.work())
                self.run(zombie.round())
            self.run(last.finish())
            self.nothing_is_there_twice_and_nothing_that_was_not_sent()
            self.what_is_committed_is_in_the_sink()
            values = {o.value for o in self.world.outputs if o.topic == "out"}
            records = [r for log in self.world.logs.values() for r in log.records]
            assert values == {r.value for r in records if r.value != BAD}
            letters = [o for o in self.world.outputs if o.topic == "t.dlq"]
            assert len(letters) == sum(1 for r in records if r.value == BAD), "dead letters lost or doubled"
            self.run(last.close())
        finally:
            for worker in self.workers:
                self.run(worker.close())
            self.run(_cancel_the_rest())
            self.run(self.loop.shutdown_default_executor())
            self.loop.close()


async def _cancel_the_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


class WithoutPlans(Protocol):
    """Offsets only, as every other stream processor has it: a replay cuts other chunks (T4)."""

    plans = False


class WithoutFence(Protocol):
    """A group that takes commits of stale generations."""

    fenced = False


TestProtocol = Protocol.TestCase
TestProtocol.settings = PROFILE


@pytest.mark.parametrize("broken", [WithoutPlans, WithoutFence])
def test_the_model_catches_a_protocol_that_is_broken(broken: type[Protocol]) -> None:
    with pytest.raises(AssertionError, match=r"doubled|lost|no end in sight|dead letters"):
        run_state_machine_as_test(broken, settings=SEARCH)


def test_the_model_catches_a_sink_that_forgets_what_it_has() -> None:
    class Forgetful(MemorySink):
        async def have(self, chunk: Any) -> Any:
            self.chunks = {f"{key}+": c for key, c in self.chunks.items()}
            return None

    class ForgetfulSink(Protocol):
        def __init__(self) -> None:
            super().__init__()
            self.world.sink = Forgetful()

    with pytest.raises(AssertionError, match="doubled"):
        run_state_machine_as_test(ForgetfulSink, settings=SEARCH)
