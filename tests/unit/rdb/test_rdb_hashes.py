"""Checksums, slots, and the generator of large files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sources.rdb import RdbReader, codis_slot, redis_slot
from sources.rdb.crc64 import crc64

BENCH = Path(__file__).parents[3] / "bench"


def test_crc64_has_the_check_value_of_the_catalogue() -> None:
    assert crc64(b"123456789") == 0xE9C6D914C4B8D9CA
    assert crc64(b"") == 0
    assert crc64(b"", 7) == 7


@given(st.binary(max_size=3000), st.integers(0, 3000), st.integers(0, 2**64 - 1))
def test_crc64_is_the_same_in_pieces(data: bytes, cut: int, before: int) -> None:
    assert crc64(data[cut:], crc64(data[:cut], before)) == crc64(data, before)


@given(st.binary(max_size=300), st.integers(0, 2**64 - 1))
def test_crc64_is_that_of_the_definition(data: bytes, crc: int) -> None:
    register = crc
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x95AC9329AC4BC9B5 if register & 1 else 0)
    assert crc64(data, crc) == register


def test_crc64_of_more_than_one_block() -> None:
    data = bytes(range(256)) * 10_000
    crc = 0
    for start in range(0, len(data), 999):
        crc = crc64(data[start : start + 999], crc)
    assert crc64(data) == crc


@pytest.mark.parametrize(
    ("key", "slot"),
    [(b"123456789", 12_739), (b"", 0), (b"foo", 12_182), (b"{foo}bar", 12_182), (b"a{foo}{bar}", 12_182)],
)
def test_redis_slots_that_are_known(key: bytes, slot: int) -> None:  # 12739 and foo: cluster specification
    assert redis_slot(key) == slot


@pytest.mark.parametrize(
    ("key", "same"),
    [(b"{}a", b"{}a"), (b"a{", b"a{"), (b"}a{b", b"}a{b"), (b"{{x}}", b"{x"), (b"{a}b}", b"a")],
)
def test_redis_slots_of_keys_with_odd_braces(key: bytes, same: bytes) -> None:
    whole_key = redis_slot(b"{" + same + b"}") if b"}" not in same else redis_slot(same)
    assert redis_slot(key) == whole_key


def test_codis_slots() -> None:
    assert codis_slot(b"123456789") == 0xCBF43926 % 1024
    assert codis_slot(b"a{123456789}b}") == 0xCBF43926 % 1024
    assert codis_slot(b"{}123456789") == 0  # the empty tag counts, unlike in Redis Cluster
    assert codis_slot(b"a{b") != codis_slot(b"a{b}")


def test_the_generator_writes_valid_files_of_distinct_keys(tmp_path: Path) -> None:
    path = tmp_path / "mixed.rdb"
    code = f"from make_rdb import write_mixed; print(write_mixed({str(path)!r}, 30_000, 5, version=12, dbs=3))"
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCH, capture_output=True, text=True, check=True)
    assert int(done.stdout) == path.stat().st_size
    with path.open("rb") as file:
        table = pa.Table.from_batches(list(RdbReader(file)))
    assert table.num_rows == 30_000
    assert len(set(table.column("key").to_pylist())) == 30_000
    assert set(table.column("db").to_pylist()) == {0, 1, 2}
    assert set(table.column("type").to_pylist()) == {"string", "hash", "list", "set", "zset"}
    assert 0.15 < 1 - table.column("expire_at_ms").null_count / 30_000 < 0.25
    assert 50 < path.stat().st_size / 30_000 < 70
