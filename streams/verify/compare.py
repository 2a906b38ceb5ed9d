"""Two relations of keys and contents: which keys differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from millstream.postgres import Connection, load
from sinks.postgres.shadow import SLOW

SHOWN = 10
"""Keys that are named of each kind; all of them with --json."""

_SQL = load("streams.verify", "compare.sql")


@dataclass
class Verdict:
    """One side (what should be) against the other (what a sink holds)."""

    name: str
    """Of what should be: source, topic."""
    rows: int = 0
    held: int = 0
    """Rows of the sink."""
    ranges: int = 0
    differing: int = 0
    """Ranges whose checksums differ."""
    missing: list[str] = field(default_factory=list)
    """Keys that the sink lacks."""
    extra: list[str] = field(default_factory=list)
    """Keys that only the sink has."""
    stale: list[str] = field(default_factory=list)
    """Keys with another content in the sink."""
    waiting: int = 0
    """Keys that differ because something is still under way to the sink."""
    notes: list[str] = field(default_factory=list)

    @property
    def keys(self) -> list[str]:
        """All keys that differ and wait for nothing."""
        return [*self.missing, *self.extra, *self.stale]

    def leave_out(self, keys: Collection[str]) -> None:
        """These are not wrong."""
        for kind in (self.missing, self.extra, self.stale):
            kind[:] = [key for key in kind if key not in keys]

    def told(self) -> list[str]:
        """Lines for the user."""
        lines = [
            f"{self.name}: {self.rows:,} rows, sink: {self.held:,}; {self.differing} of {self.ranges} key ranges differ"
        ]
        for kind, keys in (("missing", self.missing), ("extra", self.extra), ("stale", self.stale)):
            if keys:
                more = f" and {len(keys) - SHOWN:,} more" if len(keys) > SHOWN else ""
                lines.append(f"{self.name}: {kind}: {len(keys)}: {', '.join(keys[:SHOWN])}{more}")
        if self.waiting:
            lines.append(f"{self.name}: still under way to the sink: {self.waiting}")
        return [*lines, *(f"{self.name}: {note}" for note in self.notes)]


Sums = Mapping[int, tuple[int, str]]
"""Range -> rows, checksum. What a range without rows has is left out."""


def differing(one: Sums, other: Sums) -> list[int]:
    """Ranges that are not the same in both."""
    return sorted(r for r in one.keys() | other.keys() if one.get(r) != other.get(r))


def judge(verdict: Verdict, one: Mapping[str, object], other: Mapping[str, object]) -> None:
    """Put keys -> hash of both sides down by what is wrong with them."""
    verdict.missing = sorted(one.keys() - other.keys())
    verdict.extra = sorted(other.keys() - one.keys())
    verdict.stale = sorted(key for key in one.keys() & other.keys() if one[key] != other[key])


async def compare(connection: Connection, name: str, wanted: str, held: str, ranges: int) -> Verdict:
    """`wanted` and `held` are SELECTs of key and content; both are read as one snapshot if the caller sees to it."""
    sums = [await _sums(connection, relation, ranges) for relation in (wanted, held)]
    rows, there = (sum(count for count, _ in found.values()) for found in sums)
    verdict = Verdict(name, rows, there, ranges)
    if found := differing(*sums):
        verdict.differing = len(found)
        one, other = [await _keys(connection, relation, ranges, found) for relation in (wanted, held)]
        judge(verdict, one, other)
    return verdict


async def _sums(connection: Connection, relation: str, ranges: int) -> Sums:
    rows = await connection.fetch(_filled("sums", relation, ranges), timeout=SLOW)
    return {row["range"]: (row["rows"], row["checksum"]) for row in rows}


async def _keys(connection: Connection, relation: str, ranges: int, which: list[int]) -> dict[str, int]:
    rows = await connection.fetch(_filled("keys", relation, ranges), which, timeout=SLOW)
    return {row["key"]: row["hash"] for row in rows}


def _filled(name: str, relation: str, ranges: int) -> str:
    return _SQL[name].replace("{relation}", relation).replace("{ranges}", str(ranges))
