"""The long run: `make model STEPS=1000000 SEED=n`. Appends a line to docs/proof/model.jsonl, whatever the result."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model import machine
from tests.model.worker import simulated

ROOT = Path(__file__).parents[2]
PROOF = ROOT / "docs" / "proof" / "model.jsonl"
ROUND = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck), database=None,
    phases=[Phase.generate], print_blob=False, report_multiple_bugs=False,
)  # fmt: skip


def main() -> None:
    """Rounds of 100 runs, each under the next seed, until so many steps were taken, one fails, or SIGTERM comes."""
    wanted = int(os.environ.get("STEPS") or 100_000)
    seed = first = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**9))
    print(f"seed {seed}", flush=True)
    began, cpu, result, runs = time.time(), time.process_time(), "exact", Counter[str]()

    class Counted(machine.Protocol):
        def close(self) -> None:
            super().close()
            runs.update(step.name for step in self.steps)
            runs["runs"] += 1

    commit = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    with simulated():
        while not stopped and machine.STEPS["taken"] < wanted and result == "exact":
            Counted._hypothesis_internal_use_seed = seed  # type: ignore[attr-defined]
            try:
                run_state_machine_as_test(Counted, settings=ROUND)
            except AssertionError as e:
                result = f"{e} (round under seed {seed})"
                print("\n".join([result, *getattr(e, "__notes__", ())]), flush=True)
            seed += 1
            print(f"{machine.STEPS['taken']} steps in {time.time() - began:.0f} s", flush=True)
    line = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit.stdout.strip(),
        "seed": first,
        "steps": machine.STEPS["taken"],
        "runs": runs.pop("runs"),
        "seconds": round(time.time() - began),
        "cpu_seconds": round(time.process_time() - cpu),
        "taken": dict(sorted(runs.items())),
        "result": result,
    }
    with PROOF.open("a") as f:
        f.write(json.dumps(line) + "\n")
    if result != "exact":
        raise SystemExit(1)


if __name__ == "__main__":
    main()
