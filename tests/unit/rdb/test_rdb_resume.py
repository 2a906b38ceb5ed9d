"""Reading goes on from a position as if it had never stopped; memory does not grow with the values."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.errors import CorruptSourceError
from sources.rdb import Position, RdbReader
from sources.rdb.crc64 import crc64
from tests.unit.rdb.rdb_builder import FIXTURES, entry, everything, file, listpack, parse, string

FILES = {
    "redis": everything(limit=20_000),
    "valkey": everything(b"VALKEY080"),
    **{path.stem: path.read_bytes() for path in sorted(FIXTURES.glob("*-uncompressed.rdb"))},
    "lru": (FIXTURES / "valkey9-lru.rdb").read_bytes(),
}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FILES)),
    st.integers(1, 40),
    st.sampled_from([60, 1000, 1 << 19]),
    st.sampled_from([100, 5000, 1 << 20]),
)
def test_resuming_at_any_batch_gives_the_same_batches(name: str, rows: int, key_bytes: int, buffer_size: int) -> None:
    data = FILES[name]
    reader = RdbReader(io.BytesIO(data), batch_rows=rows, batch_bytes=key_bytes)
    places, batches = [reader.position], []
    for batch in reader:
        batches.append(batch)
        places.append(reader.position)
    for i in range(0, len(places), 1 + len(places) // 8):
        position = Position(**json.loads(json.dumps(places[i].to_dict())))
        assert position == places[i]
        assert position.crc64 == crc64(data[: position.offset])
        again = RdbReader(
            io.BytesIO(data), resume=position, batch_rows=rows, batch_bytes=key_bytes, buffer_size=buffer_size
        )
        for batch, same in zip(batches[i:], again, strict=True):
            assert batch.equals(same)
        assert again.position == reader.position


def test_the_iteration_may_be_taken_up_again_on_the_same_reader() -> None:
    data = FILES["valkey"]
    reader = RdbReader(io.BytesIO(data), batch_rows=3)
    rows = next(iter(reader)).to_pylist()
    rows += [row for batch in reader for row in batch.to_pylist()]
    assert rows == parse(data)


def test_the_checksum_is_verified_after_resuming() -> None:
    data = bytearray(FILES["lru"])
    data[40] ^= 1  # before the position
    reader = RdbReader(io.BytesIO(FILES["lru"]), batch_rows=5)
    next(iter(reader))
    assert len(list(RdbReader(io.BytesIO(bytes(data)), resume=reader.position))) == 1
    data[-20] ^= 1  # behind it
    with pytest.raises(CorruptSourceError):
        list(RdbReader(io.BytesIO(bytes(data)), resume=reader.position))


def test_the_position_is_that_of_the_last_batch_given_out() -> None:
    key = b"k" * 300
    data = file(*(entry(0, key + b"%d" % i, string(b"v")) for i in range(5)))
    reader = RdbReader(io.BytesIO(data), batch_bytes=700)
    assert reader.position == Position(9, 0, "REDIS0012", crc64(data[:9]), 0)
    offsets = [(reader.position.offset, reader.position.rows) for _ in reader]
    size = len(entry(0, key + b"0", string(b"v")))
    assert offsets == [(9 + 2 * size, 2), (9 + 4 * size, 4), (9 + 5 * size, 5)]


class Repeated(io.RawIOBase):
    """A huge file that is never in memory: a beginning, one byte many times, an end."""

    def __init__(self, begin: bytes, count: int, end: bytes) -> None:
        self._parts, self._size, self._end, self._at = begin, count, end, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._at < len(self._parts):
            out = self._parts[self._at : self._at + size]
        elif self._at < len(self._parts) + self._size:
            out = b"\x05" * min(size, len(self._parts) + self._size - self._at)
        else:
            at = self._at - len(self._parts) - self._size
            out = self._end[at : at + size]
        self._at += len(out)
        return out


def values(count: int) -> Iterator[tuple[str, bytes, int]]:
    """(name, beginning, number of bytes 5) of huge values: strings of 5 bytes each are `05 05 05 05 05 05`."""
    yield "string", b"\x00\x01k\x81" + count.to_bytes(8, "big"), count
    yield "list", b"\x01\x01k\x81" + (count // 6).to_bytes(8, "big"), count // 6 * 6
    yield "hash", b"\x04\x01k\x81" + (count // 12).to_bytes(8, "big"), count // 12 * 12
    head = (count + 7).to_bytes(4, "little") + (300).to_bytes(2, "little")
    yield "listpack", b"\x10\x01k\x81" + (count + 7).to_bytes(8, "big") + head, count + 1


@pytest.mark.parametrize("name", ["string", "list", "hash", "listpack"])
def test_memory_stays_the_same_however_long_a_value_is(name: str) -> None:
    def peak(count: int) -> int:
        _, begin, fives = next(value for value in values(count) if value[0] == name)
        end = entry(0, b"last", string(b"v")) + b"\xff" + bytes(8)
        source = Repeated(b"REDIS0012" + begin, fives, end)
        tracemalloc.start()
        try:
            reader = RdbReader(cast(BinaryIO, source), buffer_size=1 << 16)
            (batch,) = list(reader)
            assert batch.column("key").to_pylist() == [b"k", b"last"]
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100_000)
    small, large = peak(300_000), peak(6_000_000)
    assert large < small + 100_000
    assert large < 1 << 20


def test_memory_stays_the_same_however_many_keys_there_are(tmp_path: Path) -> None:
    def peak(keys: int) -> int:
        path = tmp_path / f"{keys}.rdb"
        value = string(listpack([b"field", b"value"]))
        path.write_bytes(file(*(entry(16, b"key %d" % i, value) for i in range(keys))))
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        try:
            arrow = 0
            with path.open("rb") as source:
                for batch in RdbReader(source, batch_rows=1000, buffer_size=1 << 16):
                    arrow = max(arrow, pa.total_allocated_bytes() - before)
                    assert batch.num_rows <= 1000
            return tracemalloc.get_traced_memory()[1] + arrow
        finally:
            tracemalloc.stop()

    peak(5000)
    small, large = peak(5000), peak(40_000)
    assert large < small + 200_000
