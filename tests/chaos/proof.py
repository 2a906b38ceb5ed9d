"""Results that stay: JSON lines under docs/proof/.

`python -m tests.chaos.proof` adds up the random runs in chaos.jsonl: deaths and kills in all, and by kind of output how
many failpoint deaths there were and which failpoints have none yet.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tests.chaos import failpoints
from tests.chaos.fleet import Fleet
from tests.chaos.forks import ROOT

HOME = ROOT / "docs" / "proof"


class Line:
    """One line of a file under docs/proof, with date and commit (`+`: with changes that are not committed).

    It may be written again and again, each time in place of what it was: so it stands however a run ends.
    """

    def __init__(self, file: str) -> None:
        changed = _git("status", "--porcelain", "-uno", "--", ".", ":!docs/proof")
        self._path = HOME / file
        self._head = {
            "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "commit": _git("rev-parse", "--short", "HEAD") + ("+" if changed else ""),
        }
        self._text = ""

    def write(self, **fields: Any) -> dict[str, Any]:
        """Add it to the file, or replace it there; returns it."""
        line = {**self._head, **fields}
        text = json.dumps(line) + "\n"
        old = self._path.read_text() if self._path.exists() else ""
        new = old.replace(self._text, text, 1) if self._text and self._text in old else old + text
        beside = self._path.with_suffix(".tmp")
        beside.write_text(new)
        beside.replace(self._path)
        self._text = text
        return line


def append(file: str, **fields: Any) -> dict[str, Any]:
    """Add a line that is complete; returns it."""
    return Line(file).write(**fields)


def record(attack: str, fleet: Fleet, verdict: Mapping[str, Mapping[str, int]]) -> None:
    """A test's result, if CHAOS_RECORD is set."""
    if os.environ.get("CHAOS_RECORD"):
        hits = dict(sorted(fleet.hits().items()))
        append("tests.jsonl", attack=attack, seed=fleet.seed, lives=fleet.lives, hits=hits, verdict=verdict)


def wanted(kind: str) -> set[str]:
    """Failpoints that must have killed a worker whose application has this kind of output: the engine's and its own."""
    job = kind.endswith(" batches")
    stream = failpoints.of_stream()
    names = {n for n in stream if "+" not in n} | set(failpoints.of_job()) if job else set(stream)
    sinks = tuple({n.partition(".")[0] + "." for n in failpoints.of_job()} - {kind.split(maxsplit=1)[0] + "."})
    return {n for n in names if not n.startswith(sinks)}


def main() -> None:
    """Print the sums."""
    lines = [json.loads(text) for text in (HOME / "chaos.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "deaths" in line and "control" not in line]
    for name in ("lives", "kills", "kills while starting", "failpoint deaths", "feeder deaths", "broker kills"):
        print(f"{name:>22}: {sum(line.get(name, 0) for line in lines)}")
    print(f"{'findings':>22}: {sum(len(line['findings']) for line in lines)}")
    for kind in sorted({k for line in lines for k in line["deaths"]} - {"feed"}):
        deaths: Counter[str] = Counter()
        for line in lines:
            deaths.update(line["deaths"].get(kind, {}))
        missing = sorted(wanted(kind) - deaths.keys())
        print(f"{kind:>22}: {deaths.total()} failpoint deaths, none yet at: {', '.join(missing) or '-'}")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
