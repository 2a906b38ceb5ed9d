"""The status of a MillstreamWorker, from its StatefulSet and pods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from millstream.operator.objects import selector

STARTING = {"ContainerCreating", "PodInitializing"}
"""What a container waits for without anything being wrong."""

EXIT_CODES = {
    1: "the settings are wrong",
    70: "an error nobody may continue past",
    75: "something did not end in time",
    137: "killed",
}
"""As docs/operations.md has them."""

_LONGEST = 500


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something wrong with a pod."""

    pod: str
    text: str
    at: str = ""
    """RFC 3339; empty: now."""
    over: bool = False
    """The pod is ready again."""


def status_of(
    worker: Mapping[str, Any],
    stateful_set: Mapping[str, Any] | None,
    pods: Iterable[Mapping[str, Any]],
    now: datetime,
) -> dict[str, Any]:
    """The status of a worker whose spec was accepted."""
    name, generation = worker["metadata"]["name"], worker["metadata"].get("generation", 0)
    wanted = int((worker.get("spec") or {}).get("replicas", 1))
    seen = (stateful_set or {}).get("status") or {}
    current = stateful_set is not None and seen.get("observedGeneration", 0) >= stateful_set["metadata"].get(
        "generation", 0
    )
    running, ready = seen.get("replicas", 0), seen.get("readyReplicas", 0)
    updated = seen.get("updatedReplicas", 0)
    troubles = [trouble for pod in pods for trouble in _troubles(pod)]
    open_ones = [trouble for trouble in troubles if not trouble.over]
    last = open_ones[0] if open_ones else max(troubles, key=lambda t: t.at, default=None)

    if current and wanted == running == 0:
        phase, message = "Stopped", "no workers are wanted"
    elif open_ones:
        phase, message = "Degraded", f"{ready} of {wanted} workers are ready; {open_ones[0].pod}: {open_ones[0].text}"
    elif current and ready == updated == running == wanted:
        phase, message = "Ready", f"{ready} of {wanted} workers are ready"
    else:
        phase, message = "Progressing", f"{ready} of {wanted} workers are ready, {updated} are up to date"
    status = {
        "observedGeneration": generation,
        "phase": phase,
        "replicas": running,
        "readyReplicas": ready,
        "updatedReplicas": updated,
        "selector": ",".join(f"{key}={value}" for key, value in selector(name).items()),
        "lastError": f"{last.pod}: {last.text}" if last else "",
    }
    conditions = [("Valid", True, "Accepted", "the spec was carried out"), ("Ready", phase == "Ready", phase, message)]
    return status | {"conditions": _conditions(worker, conditions, generation, now)}


def refused(worker: Mapping[str, Any], error: str, now: datetime) -> dict[str, Any]:
    """The status of a worker whose spec was not: what runs of it is left as it was."""
    generation = worker["metadata"].get("generation", 0)
    kept = {k: v for k, v in (worker.get("status") or {}).items() if k not in ("phase", "lastError", "conditions")}
    before = {c["type"]: c for c in (worker.get("status") or {}).get("conditions") or ()}
    ready = before.get("Ready", {"status": "False", "reason": "Invalid", "message": "nothing was started"})
    conditions = [
        ("Valid", False, "InvalidSpec", error),
        ("Ready", ready["status"] == "True", ready["reason"], ready["message"]),
    ]
    told = {"observedGeneration": generation, "phase": "Invalid", "lastError": error}
    return kept | told | {"conditions": _conditions(worker, conditions, generation, now)}


def _conditions(
    worker: Mapping[str, Any], given: list[tuple[str, bool, str, str]], generation: int, now: datetime
) -> list[dict[str, Any]]:
    """Each with the time at which it last changed between true and false."""
    before = {c["type"]: c for c in (worker.get("status") or {}).get("conditions") or ()}
    made = []
    for kind, holds, reason, message in given:
        old = before.get(kind, {})
        status = "True" if holds else "False"
        since = old["lastTransitionTime"] if old.get("status") == status else now.strftime("%Y-%m-%dT%H:%M:%SZ")
        made.append(
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "observedGeneration": generation,
                "lastTransitionTime": since,
            }
        )
    return made


def _troubles(pod: Mapping[str, Any]) -> list[Trouble]:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp"):
        return []
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    ready = conditions.get("Ready", {}).get("status") == "True"
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return [Trouble(name, f"{scheduled.get('reason')}: {scheduled.get('message')}")]
    found = []
    for container in status.get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated") or (container.get("lastState") or {}).get("terminated")
        waiting = (container.get("state") or {}).get("waiting") or {}
        if ended and ended.get("exitCode"):
            found.append(Trouble(name, _ended(ended), ended.get("finishedAt") or "", ready))
        elif waiting and waiting.get("reason") not in STARTING:
            told = f": {waiting['message']}" if waiting.get("message") else ""
            found.append(Trouble(name, f"{waiting.get('reason')}{told}"))
    return found


def _ended(ended: Mapping[str, Any]) -> str:
    """`exit code 70 (…): the last line of the log`."""
    code, reason = ended["exitCode"], ended.get("reason") or ""
    meaning = reason if reason not in ("", "Error") else EXIT_CODES.get(code, "")
    lines = [line for line in (ended.get("message") or "").splitlines() if line.strip()]
    text = f"exit code {code}" + (f" ({meaning})" if meaning else "")
    return text + (f": {lines[-1].strip()[:_LONGEST]}" if lines else "")
