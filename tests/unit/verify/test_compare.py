"""Which ranges and keys of two sides differ, and how that is told."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import PARQUET
from streams.verify.batch import hashed
from streams.verify.compare import Verdict, differing, judge

sides = st.dictionaries(st.text(max_size=2), st.integers(0, 3), max_size=8)


@given(sides, sides)
def test_every_key_that_differs_is_named_once_and_no_other(one: dict[str, int], other: dict[str, int]) -> None:
    verdict = Verdict("source")
    judge(verdict, one, other)
    assert sorted(verdict.keys) == sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))
    mended = {k: v for k, v in other.items() if k not in verdict.extra} | {k: one[k] for k in verdict.missing}
    assert mended | {k: one[k] for k in verdict.stale} == one
    verdict.leave_out(set(verdict.missing))
    assert (verdict.missing, verdict.keys) == ([], [*verdict.extra, *verdict.stale])


def test_ranges_differ_by_rows_by_checksum_or_by_being_there() -> None:
    same = {1: (2, "9"), 2: (1, "5")}
    assert differing(same, dict(same)) == []
    assert differing(same, {1: (2, "8"), 2: (1, "5"), 7: (1, "1")}) == [1, 7]
    assert differing({}, same) == [1, 2]


def test_ten_keys_are_named_and_the_others_counted() -> None:
    verdict = Verdict("source", 12, 0, 256, 3, missing=[f"k{n:02}" for n in range(12)], waiting=2, notes=["a note"])
    first, missing, waiting, note = verdict.told()
    assert first == "source: 12 rows, sink: 0; 3 of 256 key ranges differ"
    assert missing == f"source: missing: 12: {', '.join(f'k{n:02}' for n in range(10))} and 2 more"
    assert (waiting, note) == ("source: still under way to the sink: 2", "source: a note")


def test_every_column_of_a_dumped_row_counts_in_its_hash() -> None:
    row = {"cluster": "c", "batch": 0, "instance": "i", "db": 1, "key": b"\xffk", "type": "set", "member_count": 2,
           "rdb_size": 3, "encoding": "raw", "expire_at": 4, "idle_seconds": 5, "freq": 6, "codis_slot": 7,
           "redis_slot": 8}  # fmt: skip

    def of(**changes: object) -> tuple[int, int]:
        (table,) = pa.Table.from_pylist([row | changes], schema=PARQUET).to_batches()
        ranges, hashes = hashed(table, 1 << 16)
        return int(ranges[0]), int(hashes[0])

    changes: list[dict[str, object]] = [{}, {"db": 2}, {"type": "list"}, {"member_count": 3}, {"rdb_size": 4},
                                        {"encoding": "int"}, {"expire_at": None}, {"expire_at": 5},
                                        {"idle_seconds": None}, {"freq": None}, {"codis_slot": None},
                                        {"redis_slot": None}, {"key": b"other"}]  # fmt: skip
    assert len({of(**change)[1] for change in changes}) == len(changes)
    assert len({of(**change)[0] for change in changes}) == 2  # the range is the key's alone
    assert of(expire_at=1 << 60) == of(expire_at=1 << 61)  # both are after 2299 in ClickHouse (T35)
