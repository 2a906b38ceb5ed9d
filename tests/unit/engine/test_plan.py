"""What stands in the metadata of a group offset."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.engine.plan import ForeignOffsetError, Plan, Position

OFFSET = st.integers(0, 2**63 - 2)
TOPIC_ID = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", min_size=22, max_size=22)


@st.composite
def positions(draw: st.DrawFn) -> Position:
    offset = draw(OFFSET)
    plan = None
    if draw(st.booleans()):
        plan = Plan(
            offset,
            draw(st.integers(offset, 2**63 - 1)),
            draw(st.integers(0, 1_000_000)),
            draw(st.integers(0, 2**32 - 1)),
            draw(st.integers(0, 10_000)),
            draw(st.integers(0, 10_000)),
        )
    return Position(offset, draw(TOPIC_ID), draw(st.integers(1, 10**6)), plan)


@given(positions())
def test_a_position_comes_back_from_its_metadata_as_it_was(position: Position) -> None:
    assert Position.parse(position.offset, position.metadata) == position


@pytest.mark.parametrize(
    ("metadata", "position"),
    [
        ("ms2|GqLAMLyHR9qYvNTFHDDI2|1", Position(5, "GqLAMLyHR9qYvNTFHDDI2", 1)),
        ("ms2|GqLAMLyHR9qYvNTFHDDI2|3|5|7|3|99|1|2", Position(5, "GqLAMLyHR9qYvNTFHDDI2", 3, Plan(5, 7, 3, 99, 1, 2))),
    ],
)
def test_what_released_versions_wrote_is_read_for_ever(metadata: str, position: Position) -> None:  # hole o
    """Never change a line here: the next version adds its own. (Version 1 was the prototype's, never released.)"""
    assert Position.parse(5, metadata) == position


@given(positions())
def test_metadata_stays_below_256_bytes(position: Position) -> None:
    assert len(position.metadata.encode()) < 256


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        "",
        "ms1|7|3",
        "ms2",
        "ms2|id",
        "ms2|id|x",
        "ms2|id|1|5|6|1|1|0",
        "ms2|id|1|5|4|1|1|0|0",
        "ms2|id|1|6|9|1|1|0|0",
        "ms3|id|1",
        "ms2|id|1|5|6|1|1|0|0|9",
        '{"faust": 1}',
    ],
)
def test_metadata_that_is_not_ours_is_refused_with_the_ways_out(metadata: str | None) -> None:
    with pytest.raises(ForeignOffsetError, match="millstream reset") as refused:
        Position.parse(5, metadata)
    assert repr(metadata) in str(refused.value)


@given(st.text(max_size=60), OFFSET)
def test_no_foreign_text_does_anything_but_parse_or_be_refused(text: str, offset: int) -> None:
    try:
        position = Position.parse(offset, text)
    except ForeignOffsetError:
        return
    assert position.offset == offset
    assert text.startswith("ms2|")


@given(positions(), st.integers(1, 10**6))
def test_a_plan_is_only_valid_at_its_own_offset(position: Position, by: int) -> None:
    if position.plan is not None:  # Somebody moved the offset and kept the metadata.
        with pytest.raises(ForeignOffsetError):
            Position.parse(position.offset + by, position.metadata)


def test_raising_the_attempt_and_counting_a_replay_leave_the_range_alone() -> None:
    plan = Plan(5, 9, 5, 77)
    assert plan.raised() == Plan(5, 9, 5, 77, attempt=1)
    assert plan.raised().replayed().replayed() == Plan(5, 9, 5, 77, attempt=1, replays=2)


def test_a_plan_that_its_own_worker_meets_again_after_a_rebalance_is_not_counted() -> None:  # hole i
    kept = Position(5, "topic-id", 1, Plan(5, 9, 5, 77, attempt=1, replays=2))
    met = Position(5, "topic-id", 1, Plan(5, 9, 5, 77, attempt=1, replays=3))
    assert met.unless_kept(kept) == kept
    taken_up_by_another_since = Position(5, "topic-id", 1, Plan(5, 9, 5, 77, attempt=1, replays=4))
    for other in (taken_up_by_another_since, Position(10, "topic-id", 1), Position(5, "new-id", 1, met.plan)):
        assert other.unless_kept(kept) == other
    assert met.unless_kept(None) == met
    assert met.unless_kept(Position(5, "topic-id", 1)) == met
