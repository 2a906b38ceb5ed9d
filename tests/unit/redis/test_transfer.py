"""The dump is cut out of the master's stream wherever the reads end."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sources.redis.transfer import NotATransferError, Transfer

MARK = b"0123456789abcdef0123456789abcdef01234567"
dumps = st.one_of(
    st.binary(max_size=300),
    # Full of beginnings of the mark.
    st.lists(st.sampled_from([MARK[:1], MARK[:20], MARK[:39], b"\n", b"$", MARK[1:]]), max_size=12).map(b"".join),
).filter(lambda dump: MARK not in dump)
marks = st.binary(min_size=40, max_size=40)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = [0, *sorted({p % (len(data) + 1) for p in places}), len(data)]
    return [data[a:b] for a, b in pairwise(at)]


def through(pieces: list[bytes]) -> tuple[bytes, Transfer]:
    transfer = Transfer()
    return b"".join([transfer.feed(piece) for piece in pieces]), transfer


@given(dumps, st.lists(st.integers(0, 2**20), max_size=30), st.binary(max_size=60), st.booleans())
def test_any_cut_of_the_stream_gives_the_same_dump(dump: bytes, cuts: list[int], after: bytes, diskless: bool) -> None:
    stream = b"\n\n$EOF:%b\r\n%b%b" % (MARK, dump, MARK) if diskless else b"\n$%d\r\n%b" % (len(dump), dump)
    found, transfer = through(cut(stream + after, cuts))
    assert (found, transfer.done, transfer.received) == (dump, True, len(dump))
    assert transfer.size == (None if diskless else len(dump))
    whole, _ = through([bytes([b]) for b in stream])
    assert whole == dump


@given(marks, st.binary(max_size=100), st.lists(st.integers(0, 2**20), max_size=5))
def test_the_mark_may_be_any_forty_bytes(mark: bytes, dump: bytes, cuts: list[int]) -> None:
    # A line end in it as well.
    stream = b"$EOF:%b\r\n%b%b" % (mark, dump, mark)
    found, transfer = through(cut(stream, cuts))
    assert transfer.done
    assert found == (dump + mark).partition(mark)[0]


@given(dumps, st.integers(0, 400))
def test_what_is_cut_off_is_not_done(dump: bytes, missing: int) -> None:
    for stream in (b"$EOF:%b\r\n%b%b" % (MARK, dump, MARK), b"$%d\r\n%b" % (len(dump), dump)):
        part = stream[: max(0, len(stream) - 1 - missing)]
        found, transfer = through([part])
        assert not transfer.done
        assert dump.startswith(found)


@pytest.mark.parametrize(
    "sent",
    [b"-ERR BGSAVE failed\r\n", b"$12x\r\n", b"$\r\n", b"$EOF:short\r\n" + b"x" * 60, b"HTTP/1.1 400", b"$" * 2000],
)
def test_anything_else_is_told(sent: bytes) -> None:
    with pytest.raises(NotATransferError) as told:
        through([sent])
    assert str(told.value)[:4] in sent.decode()
