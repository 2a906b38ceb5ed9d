"""The figures of a report reckoned row by row, as plainly as can be."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from schemas.batch import Batch
from schemas.prefixes import PREFIX_BYTES, Prefix, significant
from schemas.survey import (
    CHANGED_KEYS,
    CHANGES,
    EXPIRY,
    EXPIRY_STEPS,
    TOP_KEYS,
    Cell,
    Changed,
    ChangedKey,
    ChangedPrefix,
    Difference,
    Group,
    KeyRow,
    Slots,
    Survey,
)
from sources.rdb import redis_slot

Rows = list[dict[str, Any]]
"""Rows of WIRE with `instance`."""


def rows_of(instances: Mapping[str, Any]) -> Rows:
    """All rows of all instances' tables."""
    return [row | {"instance": name} for name, table in instances.items() for row in table.to_pylist()]


def prefixes(keys: Iterable[tuple[bytes, int]]) -> list[Prefix]:
    """Significant prefixes of (key, size)."""
    keys = [(key[:PREFIX_BYTES], size) for key, size in keys]
    sums: dict[bytes, list[int]] = defaultdict(lambda: [0, 0])
    for key, size in keys:
        for n in range(1, len(key) + 1):
            sums[key[:n]][0] += 1
            sums[key[:n]][1] += size
    weight = significant(sum(size for _, size in keys))
    # A prefix is left out where a longer one holds the same keys.
    whole = {p[:-1]: n for p, (n, _) in sums.items() if sums.get(p[:-1], [0])[0] == n}
    return sorted(Prefix(p, n, size) for p, (n, size) in sums.items() if size >= weight and p not in whole)


def _key_row(row: dict[str, Any]) -> KeyRow:
    return KeyRow(
        row["key"][:4096], len(row["key"]), row["rdb_size"], row["member_count"], row["type"], row["encoding"],
        row["instance"], row["db"], row["expire_at_ms"],
    )  # fmt: skip


def survey(batch: Batch, rows: Rows) -> Survey:
    """All figures of a batch."""
    cells: dict[tuple[Any, ...], Rows] = defaultdict(list)
    expiry: dict[int, Rows] = defaultdict(list)
    for row in rows:
        cells[row["instance"], row["db"], row["type"], row["encoding"]].append(row)
        ends = row["expire_at_ms"]
        after = None if ends is None else ends - batch.batch_ts // 10**6
        expiry[len(EXPIRY) - 1 if after is None else sum(after >= step for step in EXPIRY_STEPS)].append(row)
    largest = sorted(rows, key=lambda r: (-r["rdb_size"], r["key"], r["instance"], r["db"]))
    big = [r for r in largest if r["rdb_size"] > (2**20 if r["type"] == "string" else 2**30)]
    kinds = sorted({r["type"] for r in big})
    first = [next(r for r in big if r["type"] == kind) for kind in kinds]
    return Survey(
        batch,
        tuple(
            Cell(*at, len(of), _size(of), sum(r["member_count"] for r in of), max(r["rdb_size"] for r in of))
            for at, of in sorted(cells.items())
        ),
        tuple(Group(name, len(expiry[i]), _size(expiry[i])) for i, name in enumerate(EXPIRY)),
        tuple(_key_row(r) for r in largest[:TOP_KEYS]),
        tuple(sorted(map(_key_row, first), key=lambda r: (-r.size, r.type))),
        tuple(Group(k, *_sums([r for r in big if r["type"] == k])) for k in kinds),
        tuple(prefixes((r["key"], r["rdb_size"]) for r in rows)),
        _slots(rows),
    )


def _sums(rows: Rows) -> tuple[int, int]:
    return len(rows), _size(rows)


def _size(rows: Rows) -> int:
    return sum(r["rdb_size"] for r in rows)


def _slots(rows: Rows) -> Slots:
    kind = next((k for k in ("codis", "redis") if any(r[f"{k}_slot"] is not None for r in rows)), None)
    count = 1024 if kind == "codis" else 16384
    keys, sizes, seen = [0] * count, [0] * count, [set() for _ in range(count)]
    for row in rows:
        slot = row[f"{kind}_slot"] if kind else redis_slot(row["key"])
        if slot is not None:
            keys[slot] += 1
            sizes[slot] += row["rdb_size"]
            seen[slot].add(row["instance"])
    return Slots("codis" if kind == "codis" else "redis", kind is not None, keys, sizes, [len(s) for s in seen])


def difference(older: Batch, before: Rows, newer: Batch, after: Rows) -> Difference:
    """What happened between two batches."""
    sides: list[dict[tuple[int, bytes], Rows]] = [defaultdict(list), defaultdict(list)]
    for side, rows in zip(sides, (before, after), strict=True):
        for row in rows:
            side[row["db"], row["key"]].append(row)
    cells: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    by_prefix: dict[tuple[bytes, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    top: dict[str, list[tuple[Any, ChangedKey]]] = defaultdict(list)
    known = {p.prefix for rows in (before, after) for p in prefixes((r["key"], r["rdb_size"]) for r in rows)}
    now, then = newer.batch_ts // 10**6, older.batch_ts // 10**6
    for at in sides[0].keys() | sides[1].keys():
        was, there = (side.get(at, []) for side in sides)
        old, new = _size(was), _size(there)
        shown = there or was
        ends = min((r["expire_at_ms"] for r in shown if r["expire_at_ms"] is not None), default=None)
        changes = [_change(was, there)]
        if not there and ends is not None and ends <= now:
            changes.append("expired")
        if there and ends is not None and now < ends <= 2 * now - then:
            changes.append("expiring")
        kind, instance = min(r["type"] for r in shown), min(r["instance"] for r in shown)
        for change in changes:
            wide = [p for p in known if at[1].startswith(p)]
            for sums in (cells[change, kind, instance], *(by_prefix[p, change] for p in wide)):
                sums[:] = [sums[0] + 1, sums[1] + old, sums[2] + new]
            weight = new if change == "expiring" else abs(new - old)
            key = ChangedKey(at[1][:4096], len(at[1]), at[0], kind, instance, old, new, ends)
            top[change].append(((-weight, at[1], at[0]), key))
    return Difference(
        older,
        newer,
        tuple(sorted(Changed(*at, *sums) for at, sums in cells.items())),
        tuple(sorted(ChangedPrefix(*at, *sums) for at, sums in by_prefix.items())),
        {
            c: tuple(key for _, key in itertools.islice(sorted(top[c], key=lambda pair: pair[0]), CHANGED_KEYS))
            for c in CHANGES
            if c in top and c != "same"
        },
    )


def _change(was: Rows, there: Rows) -> str:
    if not was or not there:
        return "new" if there else "gone"
    old, new = _size(was), _size(there)
    return "same" if old == new else "grown" if new > old else "shrunk"
