"""Significant prefixes of a set of keys, exactly, in two passes over columns of any length, in bounded memory.

A prefix is significant if the keys that start with it make up a given weight (facts 2.1: a hundredth of all bytes). In
the order of the keys such a prefix is one stretch, at least that heavy. So of any keys that lie closer together than
that, one at least is in the stretch, and the prefix is a prefix of it. Pass one draws such keys (`KeySample`), pass two
adds up the prefixes of the drawn keys only, and shows whether they did lie close enough (`PrefixCounter`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

PREFIX_BYTES = 256
"""Keys are looked at up to here: longer prefixes are not told apart."""
_DRAWN, _EVERY = 4096, 8
"""Keys drawn by weight; every eighth is used: then two of them are a hundredth apart once in a billion draws."""

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, order=True)
class Prefix:
    """How many keys start with these bytes, and the sum of their sizes."""

    prefix: bytes
    keys: int
    size: int


def significant(total: int) -> int:
    """The size from which on a prefix is significant: a hundredth of the total, 1 at least."""
    return max(1, total // 100)


def cut(keys: pa.Array) -> pa.Array:
    """The keys as far as prefixes look at them."""
    return pc.binary_slice(keys, 0, PREFIX_BYTES)


class KeySample:
    """Keys drawn at random by weight, without replacement, from a stream (reservoir of Efraimidis and Spirakis)."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._ranks, self._sizes = np.empty(0), np.empty(0, np.int64)
        self._keys = pa.array([], pa.binary())
        self._total = 0

    def add(self, keys: pa.Array, sizes: _Ints) -> None:
        """More keys, as `cut` gives them, and their weights."""
        self._total += int(sizes.sum())
        ranks = self._random.exponential(size=len(sizes)) / np.maximum(sizes, 1)
        if len(self._ranks) == _DRAWN:
            below = np.flatnonzero(ranks < self._ranks.max())
            keys, ranks, sizes = keys.take(pa.array(below)), ranks[below], sizes[below]
        self._keys = pa.concat_arrays([self._keys, keys])
        self._ranks, self._sizes = np.concatenate([self._ranks, ranks]), np.concatenate([self._sizes, sizes])
        if len(self._ranks) > _DRAWN:
            kept = np.argpartition(self._ranks, _DRAWN)[:_DRAWN]
            self._keys = self._keys.take(pa.array(kept))
            self._ranks, self._sizes = self._ranks[kept], self._sizes[kept]

    def drawn(self) -> set[bytes]:
        """About as many keys as are needed: the heavy ones, and some of the others; all if there are few."""
        keys = self._keys.to_pylist()
        if len(keys) < _DRAWN:
            return set(keys)
        heavy = np.flatnonzero(self._sizes >= self._total / _DRAWN)
        return {*sorted(keys)[::_EVERY], *(keys[i] for i in heavy)}


class PrefixCounter:
    """Adds up all prefixes of the drawn keys."""

    def __init__(self, drawn: Iterable[bytes]) -> None:
        self._drawn = sorted(drawn)
        self._prefixes = sorted({key[:n] for key in self._drawn for n in range(1, len(key) + 1)})
        self._between = np.zeros(len(self._drawn) + 1, np.int64)
        """Weight before the first drawn key, between each and the next, and after the last one."""
        self._keys = np.zeros(len(self._prefixes), np.int64)
        self._sizes = np.zeros(len(self._prefixes), np.int64)
        self._ranges = PrefixRanges(self._prefixes)
        self._places = pa.array(self._drawn, pa.binary())

    def add(self, keys: pa.Array, sizes: _Ints) -> None:
        """More keys, as `cut` gives them, in any order, and their sizes."""
        keys, (sums,) = in_order(keys, sizes)
        first, last = self._ranges.of(keys)
        self._keys += last - first
        self._sizes += sums[last] - sums[first]
        before = np.append(_search(keys, self._places, "left"), len(keys))
        after = np.insert(_search(keys, self._places, "right"), 0, 0)
        self._between += sums[before] - sums[after]

    def close_enough(self, weight: int) -> bool:
        """Whether no prefix of this weight can have been missed."""
        return bool((self._between < weight).all())

    def significant(self, weight: int) -> list[Prefix]:
        """The prefixes of this weight, in order; one that holds the same keys as a longer one is left out."""
        found = []
        for i in np.flatnonzero(self._sizes >= weight):
            longer = i + 1 < len(self._prefixes) and self._prefixes[i + 1].startswith(self._prefixes[i])
            if not (longer and self._keys[i + 1] == self._keys[i]):
                found.append(Prefix(self._prefixes[i], int(self._keys[i]), int(self._sizes[i])))
        return found


class PrefixRanges:
    """Where the keys that start with given prefixes stand among ordered keys."""

    def __init__(self, prefixes: Sequence[bytes]) -> None:
        after = [_after(prefix) for prefix in prefixes]
        self._from = pa.array(prefixes, pa.binary())
        self._to = pa.array([a or b"" for a in after], pa.binary())
        self._endless = np.array([a is None for a in after], bool)

    def of(self, ordered: pa.Array) -> tuple[_Ints, _Ints]:
        """For each prefix the first place, and the one behind the last."""
        last = _search(ordered, self._to, "left")
        return _search(ordered, self._from, "left"), np.where(self._endless, len(ordered), last)


def in_order(keys: pa.Array, *sizes: _Ints) -> tuple[pa.Array, list[_Ints]]:
    """The keys in order, and running sums of their sizes: `sums[b] - sums[a]` is that of keys a to b - 1."""
    order = pc.array_sort_indices(keys)
    return keys.take(order), [np.concatenate([[0], np.cumsum(each[order.to_numpy()])]) for each in sizes]


def _search(ordered: pa.Array, keys: pa.Array, side: str) -> _Ints:
    return np.asarray(pc.search_sorted(ordered, keys, side=side), np.int64)


def _after(prefix: bytes) -> bytes | None:
    """The smallest text above all that start with the prefix; None if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None
