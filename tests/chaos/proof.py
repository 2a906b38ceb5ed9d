"""Results that stay: JSON lines under docs/proof/."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tests.chaos.fleet import ROOT, Fleet


def append(file: str, **fields: Any) -> dict[str, Any]:
    """Add a line with date and commit (`+`: with changes that are not committed); returns it."""
    at = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    commit = _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")
    line = {"date": at, "commit": commit, **fields}
    path = ROOT / "docs" / "proof" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as f:
        f.write(json.dumps(line) + "\n")
    return line


def record(attack: str, fleet: Fleet, verdict: Mapping[str, Mapping[str, int]]) -> None:
    """A test's result, if CHAOS_RECORD is set."""
    if os.environ.get("CHAOS_RECORD"):
        hits = dict(sorted(fleet.hits().items()))
        append("tests.jsonl", attack=attack, seed=fleet.seed, lives=fleet.lives, hits=hits, verdict=verdict)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
