"""The commit cycle: what goes into which transaction, and what happens when it is refused."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from prometheus_client import REGISTRY

from millstream.cluster import TP
from millstream.errors import AttemptExhaustedError, SinkError
from schemas.chunk import Chunk as SinkChunk
from schemas.chunk import Receipt
from sinks.memory import MemorySink
from streams.engine.agents import ChunkStream
from streams.engine.chunk import Chunk, Output
from streams.engine.partition import Limits
from streams.engine.plan import Position
from tables.scope import OutsideChunkError
from tests.support.waiting import until
from tests.unit.engine.world import BAD, Died, Worker, World, only_chunk, run_for

P0, P1 = TP("t", 0), TP("t", 1)
AT_ONCE = Limits(2, 1000, 0.0)
FULL_ONLY = Limits(2, 1000, math.inf)


def world_of(*values: bytes, partitions: int = 1) -> World:
    world = World([TP("t", p) for p in range(partitions)])
    for log in world.logs.values():
        log.append(values)
    return world


async def joined(world: World, limits: Limits = AT_ONCE, **kwargs: Any) -> Worker:
    worker = Worker(world, limits, **kwargs)
    assert await worker.join()
    for tp in world.partitions:
        worker.fetch(tp)
    return worker


async def test_a_partition_that_begins_is_put_on_record_before_anything_is_read() -> None:  # rule 6
    world = world_of(b"a")
    worker = await joined(world)
    assert world.transactions == [{P0: Position(0, "topic-id", 1)}]
    await worker.close()


async def test_nothing_reaches_the_agent_before_its_range_is_on_record() -> None:  # rule 1
    world = world_of(b"a", b"b", b"c")
    worker = await joined(world, gated=True)
    worker.die_in_commit = "before"
    await worker.round()
    assert isinstance(worker.dead, Died)
    assert (worker.agent.waiting, world.sunk(P0)) == ({}, [])


async def test_the_plan_of_the_next_chunk_rides_on_the_commit_of_the_last_one() -> None:  # rule 2
    world = world_of(b"a", b"b", b"c", b"d")
    worker = await joined(world)
    await worker.round()
    await worker.work()
    await worker.round()
    first, planned, both = (t[P0] for t in world.transactions)
    assert first.plan is None
    assert planned.plan is not None
    assert both.plan is not None
    assert (planned.offset, planned.plan.first, planned.plan.last) == (0, 0, 1)
    assert (both.offset, both.plan.first, both.plan.last) == (2, 2, 3)
    await worker.close()


async def test_all_partitions_that_are_ready_share_one_transaction() -> None:  # rules 2 and 3
    world = world_of(b"a", partitions=2)
    worker = await joined(world)
    await worker.round()
    assert set(world.transactions[-1]) == {P0, P1}
    await worker.close()


async def test_partitions_of_one_task_have_one_open_chunk_among_them() -> None:  # hole d
    world = world_of(b"a", b"b", b"c", partitions=2)
    worker = await joined(world, together=True, gated=True)
    for _ in range(3):
        await worker.round()
        assert len(worker.agent.waiting) == 1
    await worker.work()
    await worker.round()
    assert len(worker.agent.waiting) == 2
    await worker.close()


async def test_outputs_and_dead_letters_go_with_the_chunk_that_made_them() -> None:  # rule 10, T13
    world = world_of(b"a", BAD)
    worker = await joined(world)
    await worker.round()
    await worker.work()
    assert world.outputs == []
    await worker.round()
    out, letter = world.outputs
    assert out == Output("out", None, b"a")
    assert (letter.topic, letter.value) == ("t.dlq", BAD)
    assert worker.topics[-1] == {"out", "t.dlq"}
    await worker.close()


async def test_a_record_that_several_agents_reject_is_one_dead_letter() -> None:  # T13
    class Strict:
        def __init__(self, name: str) -> None:
            self.name = name

        async def run(self, chunks: ChunkStream) -> None:
            async for chunk in chunks:
                for offset in chunk.table.column("_offset").to_pylist():
                    chunk.reject(offset, f"not for {self.name}")

    world = world_of(b"a", BAD, b"b")
    worker = await joined(world, agents=lambda _: [Strict("one"), Strict("two")])
    await worker.finish()
    assert sorted(o.value for o in world.outputs) == [b"a", b"b", BAD]
    assert {dict(o.headers)["millstream.dlq.reason"] for o in world.outputs} == {b"not for one", b"bad"}
    await worker.close()


async def test_a_worker_that_the_group_left_behind_drops_everything_and_waits() -> None:  # rule 11, T6, T7
    world = world_of(b"a", b"b", b"c", b"d")
    zombie = await joined(world, gated=True)
    await zombie.round()
    chunk = only_chunk(zombie)
    heir = await joined(world)
    await zombie.work()
    await zombie.round()
    assert (zombie.lost, zombie.dead, zombie.cycle.tasks) == (1, None, {})
    with pytest.raises(OutsideChunkError):
        chunk.emit(Output("out", None, b"late"))
    await heir.finish()
    assert [v for _, v in world.sunk(P0)] == [b"a", b"b", b"c", b"d"]
    assert [o.value for o in world.outputs] == [b"a", b"b", b"c", b"d"]
    await asyncio.gather(zombie.close(), heir.close())


async def test_an_assignment_lost_while_it_was_loaded_is_not_begun() -> None:
    world = world_of(b"a")
    slow = Worker(world, AT_ONCE)
    commit = slow.commit

    def too_late(*args: Any) -> None:
        world.generation += 1
        commit(*args)

    slow.commit = too_late  # type: ignore[method-assign]
    assert not await slow.join()
    assert (slow.lost, slow.cycle.tasks, world.offsets) == (1, {}, {})
    await slow.close()


async def test_a_replay_keeps_the_range_whatever_the_new_limits_say_and_asks_the_sink_first() -> None:  # T4
    world = world_of(b"a", b"b", b"c", b"d")
    first = await joined(world)
    await first.round()
    await first.work()
    await first.close()  # written, not committed
    second = await joined(world, Limits(1, 1, 0.0))
    await second.round()
    chunk = only_chunk(second)
    assert (chunk.id.first, chunk.id.last, chunk.replayed) == (0, 1, True)
    await second.work()
    assert world.sink.calls == ["write_chunk", "have"]
    await second.finish()
    assert [v for _, v in world.sunk(P0)] == [b"a", b"b", b"c", b"d"]
    await second.close()


async def test_a_new_chunk_waits_for_the_open_plans_of_its_task() -> None:
    world = world_of(b"a", b"b", partitions=2)
    first = await joined(world, together=True)
    await first.round()
    planned = only_chunk(first).id
    await first.close()
    second = Worker(world, AT_ONCE, together=True)
    assert await second.join()
    other = P1 if planned.partition == 0 else P0
    second.fetch(other)
    await second.round()
    assert second.cycle.open_chunks == 0, "the other partition's chunk could change the table before the replay"
    second.fetch(TP("t", planned.partition))
    await second.round()
    assert str(only_chunk(second).id) == str(planned)
    await second.close()


async def test_each_owner_that_meets_a_plan_open_is_counted_and_the_last_one_parks_the_partition() -> None:  # hole i
    world = world_of(b"a", b"b", b"c", partitions=2)
    for replays in range(4):
        worker = await joined(world, max_replays=3, gated=True)
        await worker.round()
        plan = Position.parse(*world.offsets[P0]).plan
        assert plan is not None
        assert plan.replays == replays
        assert worker.cycle.open_chunks == 2
        await worker.close()
    parked = await joined(world, max_replays=3)
    await parked.round()
    assert parked.cycle.open_chunks == 0
    assert Position.parse(*world.offsets[P0]).offset == 0
    assert _parked() == 2
    await parked.close()
    assert _parked() == 0  # U8: the gauge only rose
    mended = await joined(world, max_replays=100)
    await mended.finish()
    assert [v for _, v in world.sunk(P0)] == [b"a", b"b", b"c"]
    await mended.close()


def _parked() -> float:
    return REGISTRY.get_sample_value("millstream_parked_partitions", {"stream": "t"}) or 0.0


async def test_a_parked_partition_does_not_hold_up_the_others() -> None:  # hole i
    world = world_of(b"a", b"b", partitions=2)
    world.logs[P1].batches.clear()
    world.logs[P1].end = 0
    for _ in range(3):
        worker = await joined(world, gated=True)
        await worker.round()
        await worker.close()
    world.logs[P1].append([b"x"])
    worker = await joined(world, max_replays=1)
    await worker.round()
    assert only_chunk(worker).partition == 1
    await worker.work()
    await worker.round()
    assert [v for _, v in world.sunk(P1)] == [b"x"]
    assert world.sunk(P0) == []
    await worker.close()


class UsedUp(MemorySink):
    """Says that the attempt is used up until it is 2."""

    attempts: list[int]

    async def write_chunk(self, chunk: SinkChunk) -> Receipt:
        self.attempts = [*getattr(self, "attempts", []), chunk.id.attempt]
        if chunk.id.attempt < 2:
            raise AttemptExhaustedError("acknowledged, and rows are missing")
        return await super().write_chunk(chunk)


async def test_an_attempt_is_raised_in_a_transaction_before_it_is_used() -> None:  # hole a
    world = world_of(b"a", b"b")
    world.sink = sink = UsedUp()
    worker = await joined(world)

    async def committed() -> None:
        await until(lambda: world.offsets[P0][0] == 2, 5, "the chunk to be committed")

    await run_for(worker, committed)
    assert sink.attempts == [0, 1, 2]
    plans = [t[P0].plan for t in world.transactions]
    assert [p.attempt for p in plans if p] == [0, 1, 2]
    await worker.close()


async def test_an_owner_that_was_fenced_never_gets_a_raised_attempt() -> None:  # hole a
    world = world_of(b"a", b"b")
    world.sink = sink = UsedUp()
    worker = await joined(world, gated=True)
    await worker.round()
    world.generation += 1

    async def lost() -> None:
        worker.agent.waiting.popitem()[1].set()
        await until(lambda: worker.lost, 5, "the commit to be refused")

    await run_for(worker, lost)
    assert sink.attempts == [0]
    await worker.close()


async def test_a_raised_attempt_survives_its_owner() -> None:  # hole a
    world = world_of(b"a", b"b")

    class FailsAtOne(UsedUp):
        async def write_chunk(self, chunk: SinkChunk) -> Receipt:
            if chunk.id.attempt == 1:
                raise SinkError("disk full")
            return await super().write_chunk(chunk)

    world.sink = FailsAtOne()
    worker = await joined(world)

    async def failed() -> None:
        await until(lambda: worker.dead, 5, "the worker to end")

    await run_for(worker, failed)
    await worker.close()
    world.sink = sink = UsedUp()
    heir = await joined(world)

    async def committed() -> None:
        await until(lambda: world.offsets[P0][0] == 2, 5, "the chunk to be committed")

    await run_for(heir, committed)
    assert sink.attempts == [1, 2]
    await heir.close()


@pytest.mark.parametrize("where", ["decode", "agent", "sink", "agent returns"])
async def test_any_error_ends_the_worker_uncommitted(where: str) -> None:  # T1, rule 12
    world = world_of(b"a", b"b")

    class Failing:
        name = "failing"

        async def run(self, chunks: Any) -> None:
            async for chunk in chunks:
                if where == "agent":
                    raise KeyError("price")
                await worker.agent.sinks.write(chunk)
            raise AssertionError

    worker = Worker(world, AT_ONCE, agents=lambda _: [Failing()])
    assert await worker.join()
    worker.fetch(P0)
    if where == "sink":
        world.sink.fail("write_chunk", SinkError("no"))
    elif where == "decode":
        for task in worker.cycle.tasks.values():
            task.sources[P0].codec = Broken()  # type: ignore[assignment]
    elif where == "agent returns":
        worker.agents[0].run = returning
    await worker.round()
    await until(lambda: worker.dead, 5, "the worker to end")
    assert Position.parse(*world.offsets[P0]).offset == 0
    await worker.close()


class Broken:
    def decode(self, records: Any) -> Any:
        raise MemoryError("too much")


async def returning(chunks: Any) -> None:
    await chunks.__anext__()
    raise RuntimeError("an agent's end is an error")


async def test_draining_finishes_what_is_open_and_plans_nothing_new() -> None:  # T22
    world = world_of(b"a", b"b", b"c", b"d")
    worker = await joined(world, gated=True)
    await worker.round()
    worker.cycle.draining = True
    await worker.work()
    await worker.round()
    assert worker.cycle.open_chunks == 0
    assert Position.parse(*world.offsets[P0]) == Position(2, "topic-id", 1)
    await worker.close()


async def test_what_an_agents_stray_task_does_after_the_commit_is_refused() -> None:  # rule 9
    world = world_of(b"a", b"b")
    kept: list[Chunk] = []

    class Keeping:
        name = "keeping"

        async def run(self, chunks: Any) -> None:
            async for chunk in chunks:
                kept.append(chunk)

    worker = Worker(world, AT_ONCE, agents=lambda _: [Keeping()])
    assert await worker.join()
    worker.fetch(P0)
    await worker.finish()
    for use in (lambda: kept[0].emit(Output("out", None, b"")), kept[0].for_sink, lambda: kept[0].table_changes("t")):
        with pytest.raises(OutsideChunkError):
            use()
    await worker.close()


async def test_every_agent_of_a_topic_must_be_through_before_the_commit() -> None:
    world = world_of(b"a", b"b")
    gate = asyncio.Event()

    class Slow:
        name = "slow"

        async def run(self, chunks: Any) -> None:
            async for chunk in chunks:
                await gate.wait()
                chunk.emit(Output("out", b"slow", None))

    worker = Worker(world, AT_ONCE)
    worker.agents.append(Slow())
    assert await worker.join()
    worker.fetch(P0)

    async def both() -> None:
        await until(lambda: world.sink.chunks, 5, "the fast agent")
        assert Position.parse(*world.offsets[P0]).offset == 0
        gate.set()
        await until(lambda: world.offsets[P0][0] == 2, 5, "the commit")

    await run_for(worker, both)
    assert [o.key for o in world.outputs] == [None, None, b"slow"]
    await worker.close()


async def test_age_alone_seals_a_chunk_without_anything_else_happening() -> None:
    world = world_of(b"a")
    worker = Worker(world, Limits(1000, 1000, 0.05))
    assert await worker.join()
    worker.parts[P0].add(world.logs[P0].fetch(0), asyncio.get_running_loop().time())

    async def committed() -> None:
        await until(lambda: world.offsets[P0][0] == 1, 5, "the chunk to be committed")

    await run_for(worker, committed)
    await worker.close()


async def test_without_transactions_there_are_no_plans() -> None:
    world = world_of(b"a", b"b", b"c")
    worker = await joined(world, plans=False)
    await worker.finish()
    assert all(p.plan is None for t in world.transactions for p in t.values())
    assert [v for _, v in world.sunk(P0)] == [b"a", b"b", b"c"]
    await worker.close()


async def test_full_chunks_do_not_wait_for_age() -> None:
    world = world_of(b"a", b"b", b"c")
    worker = await joined(world, FULL_ONLY)
    await worker.round()
    assert only_chunk(worker).id.last == 1
    await worker.work()
    await worker.round()
    assert worker.cycle.open_chunks == 0, "the rest is neither full nor old"
    await worker.close()
