"""What a replay is asked to read: understood, or told what to write."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.errors import ConfigError
from streams.replay.plan import OutboxPlan, TopicPlan, make_plan, parse_offsets


def test_the_three_sources_and_where_each_begins() -> None:
    noon = datetime(2026, 11, 23, 12, tzinfo=UTC)
    assert make_plan("beginning", None, False, None) == TopicPlan()
    assert make_plan("2026-11-23T13:00:00+01:00", None, False, None) == TopicPlan(noon)
    assert make_plan(None, "0:17, 3:200", False, None) == TopicPlan(offsets={0: 17, 3: 200})
    assert make_plan(None, None, True, None) == OutboxPlan()
    assert make_plan(None, None, True, "2026-11-23T12:00:00Z") == OutboxPlan(noon)


def test_the_same_question_has_the_same_text_however_it_is_written() -> None:
    one = make_plan("2026-11-23T13:00:00+01:00", None, False, None)
    assert str(one) == str(make_plan("2026-11-23T12:00:00Z", None, False, None)) == "topic from 2026-11-23T12:00:00Z"
    assert str(make_plan(None, "3:2,0:1", False, None)) == str(make_plan(None, "0:1,3:2", False, None))
    texts = {str(make_plan(*a)) for a in (("beginning", None, False, None), (None, None, True, None))}
    assert texts == {"topic from beginning", "outbox from beginning"}


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        ((None, None, False, None), "give one of --from TIME"),
        (("beginning", "0:1", False, None), "give one of --from TIME"),
        (("beginning", None, True, None), "give one of --from TIME"),
        (("yesterday", None, False, None), "--from is 'yesterday': write a time with its offset"),
        (("2026-11-23T12:00:00", None, False, None), "with its offset"),
        (("0001-01-01T00:00:00+23:00", None, False, None), "write a time"),
        ((None, None, True, "noon"), "--since is 'noon'"),
        (("beginning", None, False, "2026-11-23T12:00:00Z"), "--since goes with --outbox"),
        ((None, "0:17,0:18", False, None), "partition 0 is given twice"),
        ((None, "0", False, None), "'0' is no PARTITION:OFFSET"),
        ((None, "0:-1", False, None), "'0:-1' is no PARTITION:OFFSET"),
        ((None, "0:1,", False, None), "'' is no PARTITION:OFFSET"),
        ((None, "0:٣", False, None), "is no PARTITION:OFFSET"),
    ],
)
def test_what_cannot_be_understood_is_told(given_: tuple[str | None, str | None, bool, str | None], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make_plan(*given_)


@given(st.dictionaries(st.integers(0, 1000), st.integers(0, 10**18 - 1), min_size=1))
def test_any_offsets_are_read_as_they_were_written(offsets: dict[int, int]) -> None:
    assert parse_offsets(",".join(f"{p}:{o}" for p, o in offsets.items())) == offsets


@given(st.text(max_size=30))
def test_any_text_is_offsets_or_an_error_of_ours(text: str) -> None:
    with suppress(ConfigError):  # and no other error
        assert parse_offsets(text)
