"""What a random run has done so far: deaths by kind of output and failpoint, kills, pauses, ends."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any


class Tally:
    """Counted over all groups and rounds of a run."""

    def __init__(self) -> None:
        self.deaths: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """Kind of output -> failpoint -> workers that died there while the application had this kind of output."""
        self.feeders: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.pauses: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        """Why workers ended by themselves."""

    def died_at(self, kinds: Iterable[str], failpoint: str) -> None:
        """One failpoint death, counted for each kind of output of the application."""
        self.counts["failpoint deaths"] += 1
        for kind in kinds:
            self.deaths[kind][failpoint] += 1

    def feeder_died_at(self, failpoint: str) -> None:
        """One death of a feeder; it has no output but the topic that it feeds, and counts apart."""
        self.counts["feeder deaths"] += 1
        self.feeders[failpoint] += 1

    def scarce(self, names: Sequence[str], kinds: Iterable[str], rng: Random) -> list[str]:
        """The names, those that killed least often first, in whichever kind of output that is."""
        least = {n: min(self.deaths[k][n] for k in kinds) for n in names}
        return sorted(names, key=lambda n: (least[n], rng.random()))

    def per_kind(self) -> dict[str, int]:
        """Failpoint deaths by kind of output."""
        return {kind: found.total() for kind, found in sorted(self.deaths.items())}

    def fields(self) -> dict[str, Any]:
        """For the record."""
        return {
            **dict(sorted(self.counts.items())),
            "pauses": dict(sorted(self.pauses.items())),
            "codes": dict(sorted(self.codes.items())),
            "ends": dict(self.ends.most_common()),
            "failpoint deaths by output": self.per_kind(),
            "feeders": dict(sorted(self.feeders.items())),
            "deaths": {kind: dict(sorted(found.items())) for kind, found in sorted(self.deaths.items())},
        }
