"""The commit cycle: what goes into which transaction, and what happens when it is refused."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from millstream.errors import SinkError
from streams.engine.agents import ChunkStream
from streams.engine.chunk import Chunk, Output
from streams.engine.partition import Limits
from streams.engine.plan import Position
from tables.scope import OutsideChunkError
from tests.support.waiting import until
from tests.unit.engine.world import AT_ONCE, BAD, P0, P1, Died, Worker, joined, only_chunk, run_for, world_of

FULL_ONLY = Limits(2, 1000, math.inf)


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
