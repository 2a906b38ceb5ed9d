"""Batches under way, for metrics and the status page: n of N, and who is missing. Reads the coordinator's table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from millstream import metrics
from schemas.batch import Batch
from streams.ledger import FAILED, RUNNING, BatchState, InstanceState, batch_of, instance_key

NAMED = 50
"""Missing instances of a batch that are named."""
MOST = 100
"""Batches that are told of, the newest ones; counted are all."""

_UNDER_WAY = tuple(f'{{"state":"{state}"'.encode() for state in (RUNNING, FAILED))
"""How the value of such a batch begins: most batches of a table are long published, and are not decoded."""

Scan = Callable[[bytes], list[tuple[bytes, bytes]]]
"""All keys and values under keys that begin so."""


def overview(scan: Scan, now: float) -> list[dict[str, Any]]:
    """Set the metrics of batches under way, and tell of each. Blocking."""
    batches: Counter[str] = Counter()
    instances: Counter[str] = Counter()
    oldest = quiet = 0.0
    found: list[dict[str, Any]] = []
    for key, value in scan(b"b/"):
        if not value.startswith(_UNDER_WAY):
            continue
        batch, name = msgspec.json.decode(value, type=BatchState), batch_of(key)
        states = _instances(scan, name, batch)
        counts = Counter(states.values())
        batches[batch.state] += 1
        instances += counts
        if batch.state == RUNNING:
            oldest = max(oldest, now - batch.begun_ms / 1000)
            quiet = max(quiet, now - batch.updated_ms / 1000)
        found.append(_told(name, batch, states, counts, now))
    for state in metrics.BATCH_STATES:
        metrics.BATCHES.labels(state).set(batches[state])
    for state in metrics.INSTANCE_STATES:
        metrics.BATCH_INSTANCES.labels(state).set(instances[state])
    metrics.BATCH_OLDEST.set(oldest)
    metrics.BATCH_QUIET.set(quiet)
    return sorted(found, key=lambda b: b["batch"], reverse=True)[:MOST]


def _instances(scan: Scan, name: str, batch: BatchState) -> dict[str, str]:
    """State of each instance of the manifest."""
    prefix = instance_key(name, "")
    begun = {key.removeprefix(prefix).decode(): value for key, value in scan(prefix)}
    return {
        i: msgspec.json.decode(begun[i], type=InstanceState).state if i in begun else "missing" for i in batch.instances
    }


def _told(name: str, batch: BatchState, states: dict[str, str], counts: Counter[str], now: float) -> dict[str, Any]:
    which = Batch.from_key(name)
    open_ones = [i for i, state in states.items() if state == "missing"]
    failed = [i for i, state in states.items() if state == FAILED]
    return {
        "cluster": which.cluster,
        "batch": which.rfc3339,
        "state": batch.state,
        "instances": len(states),
        "done": counts["done"],
        "running": counts["running"],
        "missing": counts["missing"],
        "failed": counts["failed"],
        "missing_instances": open_ones[:NAMED],
        "running_instances": [i for i, state in states.items() if state == "running"][:NAMED],
        "failed_instances": failed[:NAMED],
        "records": batch.rows,
        "dead_letters": batch.dead_letters,
        "reason": batch.reason,
        "seconds": round(now - batch.begun_ms / 1000, 1),
        "quiet_seconds": round(now - batch.updated_ms / 1000, 1),
    }
