"""The commit cycle: plans met open are replayed, counted and parked; attempts are raised before they are used."""

from __future__ import annotations

from prometheus_client import REGISTRY

from millstream.cluster import TP
from millstream.errors import AttemptExhaustedError, SinkError
from schemas.chunk import Chunk as SinkChunk
from schemas.chunk import Receipt
from sinks.memory import MemorySink
from streams.engine.partition import Limits
from streams.engine.plan import Position
from tests.support.waiting import until
from tests.unit.engine.world import AT_ONCE, P0, P1, Worker, joined, only_chunk, run_for, world_of


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
