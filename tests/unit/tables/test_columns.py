"""Tables by column give what tables row by row give, in the same bytes, and the two may be mixed."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from millstream.settings import Settings
from schemas.chunk import ChunkId
from streams.engine.app import App
from streams.engine.chunk import Chunk
from tables.scope import CURRENT, OutsideChunkError
from tables.store import StorePosition


@contextmanager
def opened(**options: Any) -> Iterator[Any]:
    """A table on partition 0, in a directory of its own."""
    with tempfile.TemporaryDirectory() as directory:
        table = App(Settings(app_id="columns", data_dir=Path(directory))).Table("t", **{"default": int} | options)
        table.data.open_partition(0)
        yield table
        table.data.close_partition(0)


@contextmanager
def chunk_of(table: Any, commit: bool = True) -> Iterator[Chunk]:
    """A chunk in which the table may be changed; committed at the end."""
    chunk = Chunk(ChunkId("orders", "id", 1, 0, 0, 9), [], tables=frozenset({"t"}))
    token = CURRENT.set(chunk)
    try:
        yield chunk
    finally:
        CURRENT.reset(token)
    if commit:
        table.data.apply(0, chunk.changes.get("t", {}).items(), StorePosition("changelog-id", 1, 0))
        chunk.abandon()


def stored(table: Any) -> dict[bytes, bytes]:
    return dict(table.data._iteritems())


KEYS = {
    pa.string(): st.text(max_size=5) | st.sampled_from(["a", "b", "ä", '"', "\\", "\n", "", "a,b", "\x7f", "😀"]),
    pa.int64(): st.integers(-5, 5) | st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.bool_(): st.booleans(),
    pa.binary(): st.binary(min_size=1, max_size=4).filter(lambda k: k[0] != 0),
    pa.float64(): st.sampled_from([0.5, 1e300, -3.0]),
}
INTS = st.integers(-9, 9) | st.integers(-(2**63), 2**63 - 1)


@st.composite
def rounds(draw: Any) -> tuple[pa.DataType, list[tuple[str, bool, list[Any], list[int | None]]]]:
    """Chunks of rows: by row or by column, committed before the next one or not."""
    kind = draw(st.sampled_from(list(KEYS)))
    several = []
    for _ in range(draw(st.integers(1, 4))):
        rows = draw(st.lists(st.tuples(KEYS[kind] | st.none(), INTS | st.none()), max_size=12))
        how = draw(st.sampled_from(["row", "add", "count", "put"]))
        several.append((how, draw(st.booleans()), [k for k, _ in rows], [n for _, n in rows]))
    return kind, several


async def by_column(table: Any, how: str, kind: pa.DataType, keys: list[Any], amounts: list[int | None]) -> None:
    column = pa.chunked_array([pa.array(keys, kind)])
    if how == "add":
        await table.add(column, pa.array(amounts, pa.int64()))
    elif how == "count":
        await table.add(column)
    elif how == "put":
        await table.put_many(column, amounts)
    else:
        by_row(table, "add", keys, amounts)


def by_row(table: Any, how: str, keys: list[Any], amounts: list[int | None]) -> None:
    for key, amount in zip(keys, amounts, strict=True):
        if how == "count":
            table[key] += 1
        elif how == "put" and amount is None:
            table.pop(key, None)
        elif how == "put":
            table[key] = amount
        elif amount is not None:
            table[key] += amount


@given(rounds())
@example((pa.binary(), [("add", False, [b"null", None], [1, 0])]))
def test_columns_and_rows_give_the_same_bytes_in_any_mixture(case: Any) -> None:
    kind, several = case
    with opened() as mixed, opened() as rows:
        for how, commit, keys, amounts in several:
            with chunk_of(mixed, commit) as chunk:
                asyncio.run(by_column(mixed, how, kind, keys, amounts))
                seen = asyncio.run(mixed.get_many(pa.array(keys, kind)))
                changed = {k for k, v in chunk.changes.get("t", {}).items() if v is not None}
            with chunk_of(rows, commit) as chunk:
                by_row(rows, "add" if how == "row" else how, keys, amounts)
                assert seen == [rows.get(k) if k in rows else None for k in keys]
                assert changed == {k for k, v in chunk.changes.get("t", {}).items() if v is not None}
        assert stored(mixed) == stored(rows)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-1e9, 1e9)), max_size=20))
def test_floats_add_up_to_what_they_do_row_by_row_but_for_the_last_digits(rows: list[tuple[str, float]]) -> None:
    keys, amounts = [k for k, _ in rows], [n for _, n in rows]
    with opened(default=float) as table:
        with chunk_of(table):
            asyncio.run(table.add(pa.array(keys, pa.string()), pa.array(amounts, pa.float64())))
        with chunk_of(table):
            for key in set(keys):
                wanted = sum(n for k, n in rows if k == key)
                assert table[key] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("value", [b"1,2", "1", {"n": 1}, [1, 2], 1.5, 2**70, True, 10**400])
def test_values_of_any_kind_come_back_as_they_do_one_at_a_time(value: Any) -> None:
    with opened(default=None) as table, chunk_of(table):
        asyncio.run(table.put_many(pa.array(["a", "b"]), [value, 1]))
        table["c"] = value
        assert table.data._get(b'"a"') == table.data._get(b'"c"')
        if value != b"1,2":  # bytes are stored as they are, and read as JSON: Faust's rule, not ours
            assert asyncio.run(table.get_many(pa.array(["c", "none", "a", "b"]))) == [value, None, value, 1]


def test_sums_past_64_bits_do_not_wrap_around() -> None:
    with opened() as table, chunk_of(table):
        asyncio.run(table.add(pa.array(["a"] * 3), pa.array([2**63 - 1] * 3)))
        assert table["a"] == 3 * (2**63 - 1)


def test_keys_in_a_dictionary_are_their_words() -> None:
    with opened() as table, chunk_of(table):
        asyncio.run(table.add(pa.array(["a", "b", "a"]).dictionary_encode()))
        assert (table["a"], table["b"]) == (2, 1)


def test_a_table_without_default_has_no_value_to_add_to() -> None:
    with opened(default=None) as table, chunk_of(table):
        with pytest.raises(KeyError, match="a"):
            asyncio.run(table.add(pa.array(["a"])))
        table["a"] = 1
        asyncio.run(table.add(pa.array(["a"])))
        assert table["a"] == 2


async def test_what_is_no_number_is_not_added() -> None:
    with opened() as table, chunk_of(table), pytest.raises(TypeError, match="amounts are string"):
        await table.add(pa.array(["a"]), pa.array(["1"]))


async def test_additions_at_the_same_time_all_count() -> None:
    with opened() as table, chunk_of(table):
        keys = pa.array([f"k{n % 1000}" for n in range(5000)])
        await asyncio.gather(*(table.add(keys) for _ in range(8)))
        assert {table[f"k{n}"] for n in range(1000)} == {40}


async def test_columns_are_refused_outside_a_chunk_and_in_one_that_was_abandoned() -> None:  # hole l
    with opened() as table:
        with pytest.raises(OutsideChunkError):
            await table.add(pa.array(["a"]))
        with chunk_of(table, commit=False) as chunk:
            chunk.abandon()
            with pytest.raises(OutsideChunkError):
                await table.put_many(pa.array(["a"]), [1])


async def test_a_key_that_begins_with_nul_is_refused() -> None:
    with opened() as table, chunk_of(table), pytest.raises(ValueError, match="NUL"):
        await table.put_many(pa.array([b"\0a"]), [1])


async def test_a_chunk_of_a_million_keys_each_its_own() -> None:
    keys = pa.array([f"user-{n:07d}" for n in range(1_000_000)])
    with opened() as table:
        for _ in range(2):
            with chunk_of(table) as chunk:
                await table.add(keys)
                assert len(chunk.changes["t"]) == len(keys)
        with chunk_of(table):
            assert set(await table.get_many(keys)) == {2}
            assert table["user-0000007"] == 2
