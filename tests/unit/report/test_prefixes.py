"""Significant prefixes and slots, against naive reckoning."""

from __future__ import annotations

from binascii import crc_hqx

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas import prefixes as of_prefixes
from schemas.prefixes import PREFIX_BYTES, KeySample, PrefixCounter, cut, significant
from schemas.slots import crc16, redis_slots
from sources.rdb import redis_slot
from tests.support import naive_report

WORDS = st.sampled_from(
    [b"user:", b"session:", b"a", b"b", b"\x00", b"\xff", b"\xff\xff", b":", b"{", b"}", b"1", b"22"]
)
KEYS = st.one_of(st.lists(WORDS, max_size=6).map(b"".join), st.binary(max_size=5), st.just(b"x" * (PREFIX_BYTES + 9)))
WEIGHED = st.lists(st.tuples(KEYS, st.integers(1, 10_000)), max_size=60)


def columns(keys: list[tuple[bytes, int]]) -> tuple[pa.Array, np.ndarray]:
    return pa.array([k for k, _ in keys], pa.binary()), np.array([s for _, s in keys], np.int64)


def counted(keys: list[tuple[bytes, int]], drawn: set[bytes]) -> PrefixCounter:
    """In two portions, as row groups come."""
    counter, half = PrefixCounter(drawn), len(keys) // 2
    for part in (keys[:half], keys[half:]):
        names, sizes = columns(part)
        counter.add(cut(names), sizes)
    return counter


@given(WEIGHED)
@example([(b"\xff", 1), (b"\xff\xff", 1)])
@example([(b"", 5)])
@example([(b"a", 1), (b"a", 1)])  # the same key in two databases (T41)
def test_prefixes_are_those_of_a_naive_reckoning(keys: list[tuple[bytes, int]]) -> None:
    names, sizes = columns(keys)
    sample = KeySample()
    sample.add(cut(names), sizes)
    weight = significant(sum(s for _, s in keys))
    counter = counted(keys, sample.drawn())
    assert counter.close_enough(weight)  # so few are drawn all
    assert counter.significant(weight) == naive_report.prefixes(keys)


@given(WEIGHED, st.data())
def test_keys_that_were_drawn_too_far_apart_are_noticed(keys: list[tuple[bytes, int]], data: st.DataObject) -> None:
    """Whatever was drawn: either it is said not to do, or every prefix is there."""
    drawn = data.draw(st.sets(st.sampled_from([k[:PREFIX_BYTES] for k, _ in keys]))) if keys else set()
    weight = significant(sum(s for _, s in keys))
    counter = counted(keys, drawn)
    if counter.close_enough(weight):
        assert counter.significant(weight) == naive_report.prefixes(keys)


def test_prefixes_of_many_keys_are_exact_though_few_are_drawn() -> None:
    random = np.random.default_rng(7)
    keys = [
        (b"%s:%d" % (name, number), int(size))
        for name, count in ((b"session", 9_000), (b"user", 5_000), (b"rare", 40), (b"item:\xff", 300))
        for number, size in zip(random.integers(0, 10**6, count), random.pareto(1.5, count) * 100 + 1, strict=True)
    ]
    names, sizes = columns(keys)
    sample = KeySample()
    for start in range(0, len(keys), 1000):
        sample.add(cut(names[start : start + 1000]), sizes[start : start + 1000])
    drawn = sample.drawn()
    assert len(drawn) < len(keys) / 5
    counter, weight = counted(keys, drawn), significant(int(sizes.sum()))
    assert counter.close_enough(weight)
    assert counter.significant(weight) == naive_report.prefixes(keys)


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        (b"123456789", 0x31C3),  # CRC-16/XMODEM's check value
        (b"foo", 12182),  # of Redis: CLUSTER KEYSLOT
        (b"somekey", 11058),
        (b"foo{hash_tag}", 2515),
        (b"{user1000}.following", redis_slot(b"user1000")),
        (b"foo{}{bar}", redis_slot(b"foo{}{bar}")),  # an empty tag is none
        (b"foo{{bar}}zap", redis_slot(b"{bar")),
        (b"foo{bar}{zap}", redis_slot(b"bar")),
    ],
)
def test_known_slots(key: bytes, slot: int) -> None:
    assert redis_slots(pa.array([key], pa.binary())).tolist() == [slot % 16384]


@given(st.lists(st.one_of(KEYS, st.binary(max_size=200)), max_size=30), st.integers(0, 5))
def test_slots_of_a_column_are_those_of_its_keys(keys: list[bytes], first: int) -> None:
    column = pa.array(keys, pa.binary())[first:]
    assert redis_slots(column).tolist() == [redis_slot(k) for k in keys[first:]]
    assert crc16(column).tolist() == [crc_hqx(k, 0) for k in keys[first:]]


def test_what_is_drawn_stays_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_prefixes, "_DRAWN", 16)
    sample = KeySample()
    for start in range(0, 1000, 100):
        keys = [(b"%04d" % n, 1) for n in range(start, start + 100)]
        sample.add(*columns(keys))
    assert 0 < len(sample.drawn()) <= 16
