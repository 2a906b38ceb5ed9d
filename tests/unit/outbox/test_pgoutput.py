"""Messages of pgoutput: what is put together by its documentation is read back; all else is an error that says so."""

from __future__ import annotations

import contextlib
import struct
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.errors import PostgresError
from sources.outbox.pgoutput import Begin, Commit, Decoder, Insert

lsns = st.integers(0, (1 << 63) - 1)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
values = st.none() | st.binary(max_size=40)


class Table(NamedTuple):
    """A table as the server describes it."""

    number: int
    schema: str
    name: str
    columns: list[str]


tables = st.builds(
    Table, st.integers(0, (1 << 32) - 1), names, names, st.lists(names, min_size=1, max_size=6, unique=True)
)


def begin(lsn: int) -> bytes:
    return struct.pack("!cqqi", b"B", lsn, 700_000_000_000_000, 4711)


def commit(lsn: int) -> bytes:
    return struct.pack("!cBqqq", b"C", 0, 1, lsn, 700_000_000_000_000)


def relation(table: Table) -> bytes:
    head = struct.pack("!cI", b"R", table.number) + f"{table.schema}\0{table.name}\0".encode()
    columns = (b"\1" + name.encode() + b"\0" + struct.pack("!Ii", 25, -1) for name in table.columns)
    return head + struct.pack("!ch", b"d", len(table.columns)) + b"".join(columns)


def insert(table: Table, row: list[bytes | None]) -> bytes:
    cells = (b"n" if cell is None else struct.pack("!ci", b"b", len(cell)) + cell for cell in row)
    return struct.pack("!cIch", b"I", table.number, b"N", len(row)) + b"".join(cells)


@given(lsns, lsns, tables, st.data())
def test_a_transaction_comes_back_as_it_was(first: int, last: int, table: Table, data: st.DataObject) -> None:
    row = data.draw(st.lists(values, min_size=len(table.columns), max_size=len(table.columns)))
    decode = Decoder()
    messages = [begin(first), relation(table), insert(table, row), b"O ignored", commit(last)]
    assert [decode(message) for message in messages] == [
        Begin(first),
        None,
        Insert(f"{table.schema}.{table.name}", dict(zip(table.columns, row, strict=True))),
        None,
        Commit(last),
    ]


@given(tables, st.data())
def test_a_message_that_is_cut_anywhere_is_an_error_and_never_a_row(table: Table, data: st.DataObject) -> None:
    row = data.draw(st.lists(values, min_size=len(table.columns), max_size=len(table.columns)))
    decode = Decoder()
    decode(relation(table))
    for message in (begin(1), commit(1), relation(table), insert(table, row)):
        for end in range(len(message)):
            with pytest.raises(PostgresError, match=f"pgoutput message of {end} bytes cannot be read"):
                decode(message[:end])
        if message[:1] != b"R":
            with pytest.raises(PostgresError, match="cannot be read"):
                decode(message + b"\0")


@given(tables, st.binary(max_size=60))
def test_no_bytes_whatever_lead_to_another_error(table: Table, found: bytes) -> None:
    decode = Decoder()
    decode(relation(table))
    for message in (found, b"I" + found, insert(table, [b"x"] * len(table.columns))[:6] + found):
        with contextlib.suppress(PostgresError):
            decode(message)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"", "it is empty"),
        (insert(Table(8, "a", "b", ["c"]), [b""]), "KeyError: 8"),
        (struct.pack("!cIch", b"I", 7, b"K", 2), "a tuple of kind b'K'"),
        (insert(Table(7, "", "", []), [b"1"]), "a row of 1 columns for a table of 2"),
        (struct.pack("!cIchc", b"I", 7, b"N", 2, b"t"), "column 'one' is of kind b't', not binary"),
        (struct.pack("!cIchci", b"I", 7, b"N", 2, b"b", -5), "column 'one' is cut off"),
    ],
)
def test_the_error_says_what_is_wrong(message: bytes, told: str) -> None:
    decode = Decoder()
    decode(relation(Table(7, "catalog", "outbox_events", ["one", "two"])))
    with pytest.raises(PostgresError, match="cannot be read") as raised:
        decode(message)
    assert told in str(raised.value)
