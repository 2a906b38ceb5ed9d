"""Records by column are the records they were made of, however they are cut and joined."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.log_records import LogRecord, LogRecords, join, keys_of, values_of

BYTES = st.none() | st.binary(max_size=4)
HEADERS = st.just(()) | st.lists(st.tuples(st.sampled_from("ab"), BYTES), max_size=2).map(tuple)


@st.composite
def records(draw: st.DrawFn, first: int = 0) -> list[LogRecord]:
    """Records with and without gaps between offsets, keys and headers."""
    offset, made = draw(st.integers(first, first + 3)), []
    gaps = draw(st.booleans())
    for _ in range(draw(st.integers(0, 6))):
        timestamp = draw(st.integers(-1, 2**63 - 1))
        kind = draw(st.integers(0, 1))
        made.append(LogRecord(offset, timestamp, kind, draw(BYTES), draw(BYTES), draw(HEADERS)))
        offset += 1 + (draw(st.integers(0, 2)) if gaps else 0)
    return made


@given(records())
def test_records_come_out_as_they_went_in(made: list[LogRecord]) -> None:
    columns = LogRecords.of(made)
    assert list(columns) == made == [columns[i] for i in range(len(columns))]
    assert len(columns) == len(made)
    assert values_of(columns) == values_of(made)
    assert keys_of(columns) == keys_of(made)
    assert list(columns.offsets) == [r.offset for r in made]


@given(records(), st.slices(6))
def test_a_slice_of_them_is_a_slice_of_the_list(made: list[LogRecord], part: slice) -> None:
    assert list(LogRecords.of(made)[part]) == made[part]


@given(st.lists(records(), min_size=1, max_size=4), st.booleans())
def test_joined_they_are_the_lists_after_one_another(parts: list[list[LogRecord]], by_column: bool) -> None:
    made = [LogRecords.of(p) if by_column or i % 2 else p for i, p in enumerate(parts)]
    assert list(join(made)) == [r for p in parts for r in p]


@given(records(), st.data())
def test_cut_anywhere_and_joined_again_they_are_the_same(made: list[LogRecord], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(made)))
    columns = LogRecords.of(made)
    again = join([columns[:at], columns[at:]])
    assert list(again) == made
    assert isinstance(again, LogRecords)
    if isinstance(columns.offsets, range):
        assert isinstance(again.offsets, range), "offsets without a gap take no room"
