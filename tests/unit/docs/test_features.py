"""docs/features.md: every id once, a legal status, and evidence that exists."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.unit.docs.documents import ROOT, exists, named_tests

PAGE = (ROOT / "docs" / "features.md").read_text("utf-8")
STATUSES = {"done", "habit", "given", "not yet"}
TRAPS = set(range(1, 44)) - {10, 16, 40}
"""Those three were dropped from the list."""


def rows(pattern: str) -> dict[str, list[str]]:
    """First cell -> the other cells, of all table rows whose first cell matches."""
    lines = [line for line in PAGE.splitlines() if re.match(rf"\| ({pattern}) \|", line)]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    doubled = [name for name, n in Counter(c[0] for c in cells).items() if n > 1]
    assert doubled == []
    return {name: rest for name, *rest in cells}


FEATURES, TRAP_ROWS = rows(r"(?:R[UPO]|PE|DF)-\d+"), rows(r"T\d+")


def test_every_row_and_every_trap_stands_there_once() -> None:
    families = {"RU": 73, "RP": 74, "PE": 69, "RO": 97}
    all_of_them = [f"{family}-{i}" for family, n in families.items() for i in range(1, n + 1)]
    assert list(FEATURES) == all_of_them + [f"DF-{i}" for i in range(61, 76)]
    assert list(TRAP_ROWS) == [f"T{i}" for i in sorted(TRAPS)]
    assert {name: cells[:2] for name, cells in rows("DF").items()} == {"DF": ["83", "not yet"]}


def test_the_counts_are_those_of_the_table() -> None:
    told = {name: int(cells[1]) for name, cells in rows("|".join(STATUSES)).items()}
    counted = Counter(status for _, status, _ in FEATURES.values())
    assert told == {status: counted[status] for status in STATUSES}


@pytest.mark.parametrize("row", [*FEATURES, *TRAP_ROWS])
def test_a_row_is_done_only_with_a_test_that_exists(row: str) -> None:  # RU-2
    text, status, evidence = FEATURES.get(row) or TRAP_ROWS[row]
    assert text
    assert status in (STATUSES if row in FEATURES else {"done", "not yet", "n/a"})
    tests = named_tests(evidence)
    assert [at for at in tests if not exists(*at)] == []
    if status == "done":
        assert any(name for _, name in tests), "names no test"
    elif status == "habit":
        files = re.findall(r"`([\w./-]+)`", evidence)
        assert files
        assert [file for file in files if not (ROOT / file).exists()] == []
    else:
        assert evidence, "says why"
