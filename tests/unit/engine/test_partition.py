"""Cutting chunks out of a partition's log, and cutting them again after a crash."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streams.engine.partition import Cut, Limits, PartitionState, RangeChangedError
from streams.engine.plan import Plan, Position
from tests.unit.engine.logs import CONTROL, Log, logs

NEVER = math.inf


def weight(record: Any) -> int:
    """Rows of a record, for topics with many rows per record."""
    return len(record.value or b"") % 5


def is_control(record: Any) -> bool:
    return bool(record.value == CONTROL)


limits = st.builds(Limits, st.integers(1, 9), st.sampled_from([1, 2, 45, 10**6]), st.sampled_from([0.0, 3.0, NEVER]))
rows_functions = st.sampled_from([None, weight])


def state(log: Log, limit: Limits, at: int = 0, plan: Plan | None = None, rows: Any = None) -> PartitionState:
    return PartitionState(Position(at, "id", 1, plan), limit, rows, is_control)


def commit(part: PartitionState, cut: Cut) -> None:
    part.position = replace(part.position, offset=cut.last + 1, plan=None)


def drive(data: st.DataObject, log: Log, part: PartitionState) -> list[Cut]:
    """Fetch in groups of any size and let any time pass, sealing whenever a chunk is due, until the log is read."""
    cuts: list[Cut] = []
    now, read_to = 0.0, part.position.offset
    while True:
        found = log.fetch(read_to, data.draw(st.integers(1, 4)))
        if not found:
            break
        read_to = found[-1].last + 1
        part.add(found, now)
        while data.draw(st.booleans()):
            now += data.draw(st.sampled_from([0.0, 1.0, 5.0]))
            if (cut := part.seal(now)) is not None:
                cuts.append(cut)
                commit(part, cut)
    return cuts


def drain(part: PartitionState) -> list[Cut]:
    """Seal by age until nothing is left."""
    part.limits = part.limits._replace(age=0.0)
    cuts = []
    while (cut := part.seal(10.0**9)) is not None:
        cuts.append(cut)
        commit(part, cut)
    return cuts


@given(st.data(), logs(), limits, rows_functions)
def test_chunks_tile_the_log_without_gap_or_overlap_and_hold_every_record_once(
    data: st.DataObject, log: Log, limit: Limits, rows: Any
) -> None:
    part = state(log, limit, rows=rows)
    cuts = drive(data, log, part) + drain(part)
    expected = 0
    for cut in cuts:
        assert cut.first == expected
        assert cut.last >= cut.first
        assert all(cut.first <= r.offset <= cut.last for r in cut.records)
        expected = cut.last + 1
    assert [r for cut in cuts for r in cut.records] == log.records
    assert part.buffered_records == part.buffered_rows == part.buffered_bytes == 0


@given(st.data(), logs(), limits, rows_functions)
def test_a_chunk_keeps_the_limits_unless_one_record_alone_exceeds_them(
    data: st.DataObject, log: Log, limit: Limits, rows: Any
) -> None:
    part = state(log, limit, rows=rows)
    for cut in drive(data, log, part) + drain(part):
        assert cut.records, "a chunk of no records would move nothing and be planned for ever"
        if len(cut.records) > 1:
            assert (sum(map(rows, cut.records)) if rows else len(cut.records)) <= limit.rows
            assert sum(len(r.value or b"") for r in cut.records) <= limit.bytes


@given(st.data(), logs(), limits, rows_functions)
def test_a_control_record_is_a_chunk_of_its_own(data: st.DataObject, log: Log, limit: Limits, rows: Any) -> None:
    part = state(log, limit, rows=rows)
    for cut in drive(data, log, part) + drain(part):
        assert cut.control == (len(cut.records) == 1 and is_control(cut.records[0]))
        if any(map(is_control, cut.records)):
            assert len(cut.records) == 1


@given(st.data(), logs(), limits, limits, rows_functions)
def test_a_replay_gives_exactly_the_planned_records_however_they_are_fetched(
    data: st.DataObject, log: Log, limit: Limits, other: Limits, rows: Any
) -> None:  # T4, hole o
    part = state(log, limit, rows=rows)
    for cut in drive(data, log, part) + drain(part):
        # A successor, maybe with other limits: its plan is all it has.
        again = state(log, other, cut.first, cut.plan(), rows)
        read_to, replayed = cut.first, None
        while replayed is None:
            assert again.wants_more, "the planned range must be read, whatever is buffered"
            found = log.fetch(read_to, data.draw(st.integers(1, 4)))
            read_to = found[-1].last + 1
            again.add(found, 0.0)
            replayed = again.replay(0.0)
        assert replace(replayed, records=[]) == replace(cut, records=[])
        assert list(replayed.records) == list(cut.records)
        commit(again, replayed)
        # What was read beyond the range is cut on without a gap.
        again.add(log.fetch(read_to), 0.0)
        rest = drain(again)
        assert [r for c in rest for r in c.records] == [r for r in log.records if r.offset > cut.last]
        assert not rest or rest[0].first == cut.last + 1


@given(st.data(), logs(), limits)
def test_a_changed_log_is_noticed(data: st.DataObject, log: Log, limit: Limits) -> None:  # holes b and c
    part = state(log, limit)
    cuts = drive(data, log, part) + drain(part)
    assume(cuts)
    cut = data.draw(st.sampled_from(cuts))
    victim = data.draw(st.sampled_from(cut.records)).offset
    changed = Log(end=log.end)
    recompressed = data.draw(st.booleans())
    for b in log.batches:
        hit = b.first <= victim <= b.last
        records = [r for r in b.records if r.offset != victim] if hit and not recompressed else b.records
        changed.batches.append(b._replace(records=records, crc=b.crc ^ 1 if hit and recompressed else b.crc))
    again = state(changed, limit, cut.first, cut.plan())
    again.add(changed.fetch(cut.first), 0.0)
    with pytest.raises(RangeChangedError, match=f"{cut.first}..{cut.last}.*millstream reset"):
        again.replay(0.0)


@given(logs())
def test_a_plan_whose_range_has_not_been_read_whole_waits(log: Log) -> None:
    assume(len(log.batches) > 1)
    part = state(log, Limits(1, 1, 0.0), plan=Plan(0, log.end - 1, len(log.records), 0))
    part.add(log.fetch(0)[:-1], 0.0)
    assert part.replay(0.0) is None
    assert part.wants_more, "an open plan is read to its end past every limit"


def test_a_planned_range_that_the_log_no_longer_holds_is_noticed_once_its_end_was_passed() -> None:  # U6, hole c
    part = PartitionState(Position(5, "t", 1, Plan(5, 7, 3, 99)), Limits(10, 1000, 0.0))
    assert part.wants_more
    assert part.replay(0.0) is None, "it may still come"
    part.passed(9)
    with pytest.raises(RangeChangedError, match="held 3 records"):
        part.replay(0.0)


def test_nothing_is_sealed_from_nothing() -> None:
    part = state(Log(), Limits(1, 1, 0.0))
    assert (part.seal(1e9), part.ready(1e9), part.due_in(0.0)) == (None, False, NEVER)
    emptied = Log()
    emptied.append([b"x", b"y"], drop=[0, 1])
    part.add(emptied.fetch(0), 0.0)
    assert part.seal(1e9) is None, "a batch that compaction emptied is no chunk"


def test_offsets_without_records_belong_to_the_next_chunk() -> None:
    log = Log()
    log.append([b"x", b"y"], drop=[0, 1])
    log.append([b"z"], skip=3)
    part = state(log, Limits(10, 100, 0.0))
    part.add(log.fetch(0), 0.0)
    cut = part.seal(0.0)
    assert cut is not None
    assert (cut.first, cut.last, len(cut.records)) == (0, 5, 1)


def test_age_counts_from_the_first_record() -> None:
    log = Log()
    log.append([b"a"])
    log.append([b"b"])
    part = state(log, Limits(10, 100, 2.0))
    part.add(log.fetch(0, 1), 10.0)
    part.add(log.fetch(1), 11.5)
    assert part.due_in(11.5) == 0.5
    assert part.seal(11.9) is None
    cut = part.seal(12.0)
    assert cut is not None
    assert len(cut.records) == 2


@pytest.mark.parametrize("limit", [Limits(2, 10**6, NEVER), Limits(10**6, 4, NEVER)])
def test_reading_pauses_at_twice_the_limits_and_goes_on_after_a_chunk(limit: Limits) -> None:  # T21
    log = Log()
    for _ in range(6):
        log.append([b"ab"])
    part = PartitionState(Position(0, "id", 1), limit)
    read = 0
    while part.wants_more:
        part.add(log.fetch(read, 1), 0.0)
        read += 1
    assert read == 4
    assert part.seal(0.0) is not None
    assert part.wants_more


def test_the_next_chunk_is_read_while_one_is_open_and_no_more_than_that() -> None:  # T21
    log = Log()
    for _ in range(6):
        log.append([b"ab"])
    part = PartitionState(Position(0, "id", 1), Limits(2, 10**6, NEVER))
    part.add(log.fetch(0, 2), 0.0)
    cut = part.seal(0.0)
    assert cut is not None
    part.position = replace(part.position, plan=cut.plan())
    assert not part.owes_plan
    part.add(log.fetch(2, 1), 0.0)
    assert part.wants_more
    part.add(log.fetch(3, 1), 0.0)
    assert not part.wants_more, "an open chunk counts as one of two"
    commit(part, cut)
    assert part.wants_more
    assert part.ready(0.0)


def test_an_unreadable_leftover_of_a_batch_before_the_position_is_dropped() -> None:
    log = Log()
    log.append([b"a", b"b", b"c"], drop=[2])
    part = state(log, Limits(10, 100, 0.0), at=3)
    part.add(log.fetch(0), 0.0)
    assert part.seal(1e9) is None
