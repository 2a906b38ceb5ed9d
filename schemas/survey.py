"""What a report tells of a batch, and of the difference between two; every sink's reader gives the same figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from schemas.batch import Batch
from schemas.prefixes import Prefix

TOP_KEYS = 100
CHANGED_KEYS = 50
"""Keys that are shown of each kind of change."""
SHOWN_KEY_BYTES = 4096
"""Bytes of a key that are kept to be shown; a key may have 512 MB."""
BIG_STRING, BIG_OTHER = 1 << 20, 1 << 30
"""Sizes above which a string, or a key of another type, is a big key (facts 2.1)."""

_HOUR = 3_600_000
EXPIRY_STEPS = (0, _HOUR, 24 * _HOUR, 7 * 24 * _HOUR, 30 * 24 * _HOUR, 365 * 24 * _HOUR)
"""Milliseconds after the batch at which the next group of expiries begins."""
EXPIRY = ("expired already", "within an hour", "within a day", "within 7 days", "within 30 days", "within a year",
          "later", "never")  # fmt: skip

Progress = Callable[[str, float], None]
"""Told what is being done, and which part of all work is done (0 to 1)."""

CHANGES = ("new", "gone", "grown", "shrunk", "same", "expired", "expiring")
"""The first five hold every key once. `expired`: those gone whose expiry had come by the newer batch. `expiring`: those
of the newer batch whose expiry comes within as much time again as lies between the two."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """Keys of one instance, db, type and encoding."""

    instance: str
    db: int
    type: str
    encoding: str
    keys: int
    size: int
    members: int
    largest: int


@dataclass(frozen=True, slots=True)
class Group:
    """Keys that have something in common."""

    name: str
    keys: int
    size: int
    members: int = 0
    largest: int = 0


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key."""

    key: bytes
    """The first SHOWN_KEY_BYTES of it."""
    length: int
    size: int
    members: int
    type: str
    encoding: str
    instance: str
    db: int
    expire_at_ms: int | None


@dataclass(frozen=True, slots=True)
class Slots:
    """Keys and bytes of each slot, and the slots that keys of more than one instance are in."""

    kind: Literal["redis", "codis"]
    recorded: bool
    """The feeder recorded them; else they are what Redis Cluster would reckon."""
    keys: list[int]
    sizes: list[int]
    instances: list[int]

    @property
    def shared(self) -> list[int]:
        """Slots on several instances."""
        return [slot for slot, n in enumerate(self.instances) if n > 1]


@dataclass(frozen=True, slots=True)
class Survey:
    """One batch. `==` compares all figures."""

    batch: Batch
    cells: tuple[Cell, ...]
    """In order."""
    expiry: tuple[Group, ...]
    """One per EXPIRY."""
    top: tuple[KeyRow, ...]
    """Largest first; equal ones by key, instance, db."""
    big: tuple[KeyRow, ...]
    """The largest big key of each type, largest first."""
    over: tuple[Group, ...]
    """All big keys, by type."""
    prefixes: tuple[Prefix, ...]
    """Significant ones, in order."""
    slots: Slots

    @property
    def keys(self) -> int:
        """Number of keys."""
        return sum(c.keys for c in self.cells)

    @property
    def size(self) -> int:
        """Bytes as in the RDB files."""
        return sum(c.size for c in self.cells)

    def by(self, *names: Literal["instance", "db", "type", "encoding"]) -> list[Group]:
        """Figures by some of a cell's coordinates, the largest first."""
        found: dict[tuple[str | int, ...], list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(tuple(getattr(cell, name) for name in names), []).append(cell)
        groups = [
            Group(
                " ".join(map(str, name)),
                sum(c.keys for c in cells),
                sum(c.size for c in cells),
                sum(c.members for c in cells),
                max(c.largest for c in cells),
            )
            for name, cells in found.items()
        ]
        return sorted(groups, key=lambda g: (-g.size, g.name))


@dataclass(frozen=True, slots=True, order=True)
class Changed:
    """Keys of one kind of change, type and instance: sizes in the older and the newer batch."""

    change: str
    type: str
    instance: str
    keys: int
    before: int
    after: int


@dataclass(frozen=True, slots=True, order=True)
class ChangedPrefix:
    """The same by prefix."""

    prefix: bytes
    change: str
    keys: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class ChangedKey:
    """One changed key, summed over instances that hold it."""

    key: bytes
    length: int
    db: int
    type: str
    instance: str
    before: int
    after: int
    expire_at_ms: int | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What happened between two batches of a cluster to its keys, which (db, key) tells apart."""

    older: Batch
    newer: Batch
    cells: tuple[Changed, ...]
    """In order."""
    prefixes: tuple[ChangedPrefix, ...]
    """In order; changes without a key are left out."""
    top: dict[str, tuple[ChangedKey, ...]]
    """By kind of change (without `same`), those of the most bytes first; equal ones by key, db."""


def millis(batch: Batch) -> int:
    """The batch's time in milliseconds, cut."""
    return batch.batch_ts // 1_000_000


def expiry_bounds(batch: Batch) -> list[int]:
    """EXPIRY_STEPS as times, in milliseconds."""
    return [millis(batch) + step for step in EXPIRY_STEPS]


def expiring_until(older: Batch, newer: Batch) -> int:
    """The end of the time in which keys count as expiring, in milliseconds."""
    return 2 * millis(newer) - millis(older)


def expiry_groups(counts: Iterable[tuple[int, int, int]]) -> tuple[Group, ...]:
    """One group per EXPIRY of (its number, keys, size)."""
    found = {number: (keys, size) for number, keys, size in counts}
    return tuple(Group(name, *found.get(i, (0, 0))) for i, name in enumerate(EXPIRY))
