"""The part of the page that tells what happened between two batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from schemas.survey import CHANGES, Difference, expiring_until

_ROWS = 50
_MEANING = {
    "new": "only in the newer batch",
    "gone": "only in the older batch",
    "grown": "in both, larger now",
    "shrunk": "in both, smaller now",
    "same": "in both, of the same size",
    "expired": "of those gone: their expiry had come",
    "expiring": "of the newer batch: their expiry comes within as much time again",
}


@dataclass(slots=True)
class ChangeRow:
    """One type, instance or prefix: keys of each kind of change, and what the bytes came to."""

    name: str | bytes
    keys: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    before: int = 0
    after: int = 0

    def add(self, change: str, keys: int, before: int, after: int) -> None:
        """`expired` and `expiring` are of keys that count elsewhere already."""
        self.keys[change] += keys
        if change not in ("expired", "expiring"):
            self.before += before
            self.after += after

    @property
    def net(self) -> int:
        """Bytes more."""
        return self.after - self.before


def changes_view(difference: Difference) -> dict[str, Any]:
    """What the template shows."""
    by_change = {change: [0, 0, 0] for change in CHANGES}
    for cell in difference.cells:
        sums = by_change[cell.change]
        sums[0], sums[1], sums[2] = sums[0] + cell.keys, sums[1] + cell.before, sums[2] + cell.after
    prefixes = _by_net(_rows((p.prefix, p.change, p.keys, p.before, p.after) for p in difference.prefixes))
    return {
        "older": difference.older,
        "newer": difference.newer,
        "until": expiring_until(difference.older, difference.newer),
        "kinds": [(change, _MEANING[change], *by_change[change]) for change in CHANGES],
        "by_type": _cells(difference, "type"),
        "by_instance": _cells(difference, "instance")[:_ROWS],
        "prefixes": [row for row in prefixes if set(row.keys) - {"same"}][:_ROWS],
        "top": [(change, _MEANING[change], difference.top[change]) for change in CHANGES if change in difference.top],
    }


def _cells(difference: Difference, name: Literal["type", "instance"]) -> list[ChangeRow]:
    return _by_net(_rows((getattr(c, name), c.change, c.keys, c.before, c.after) for c in difference.cells))


def _rows(figures: Iterable[tuple[Any, str, int, int, int]]) -> list[ChangeRow]:
    found: dict[Any, ChangeRow] = {}
    for name, change, keys, before, after in figures:
        found.setdefault(name, ChangeRow(name)).add(change, keys, before, after)
    return list(found.values())


def _by_net(rows: list[ChangeRow]) -> list[ChangeRow]:
    return sorted(rows, key=lambda r: (-abs(r.net), r.name))
