"""The state of every batch, and the rules by which facts change it. No Kafka, no sinks, no clock (`streams.batches`).

Two kinds of small values are kept: one per batch, one per (batch, instance). An instance's facts come in the order of
its log; those of different instances in any order; each may come again (T33).

    batch:     running -> published | failed | aborted      failed -> running when a failed instance is fed again
    instance:  running -> done | failed                     any -> running when a new run begins (hole e)
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from schemas.batch import Batch, Run
from schemas.control import AbortBatch, Begun, Fact, InstanceDone, InstanceFailed, Progress, Where, listed_twice
from sinks.base import InstanceRange

RUNNING, PUBLISHED, FAILED, ABORTED, DONE = "running", "published", "failed", "aborted", "done"
FACT_PARTITIONS = 4
"""Of the topic of facts: batches are coordinated side by side by up to so many workers."""
EXPECTED = "expected"
"""State shown for an instance of the manifest that has not begun."""

KEEP_MS = 30 * 24 * 3600 * 1000
"""Finished batches stay listed for 30 days, by the time of records: a replay must prune the same ones."""
VOIDED_KEPT = 32
"""Earlier runs of an instance that are remembered, so that a late duplicate cannot revive one."""

Store = MutableMapping[bytes, bytes]


class BatchState(msgspec.Struct, kw_only=True):
    """One batch."""

    state: str = RUNNING
    instances: list[str]
    """The manifest."""
    reason: str = ""
    rows: int = 0
    """Rows in the sinks, of valid runs."""
    dead_letters: int = 0
    done: int = 0
    """Instances that are done."""
    begun_ms: int
    updated_ms: int


class InstanceState(msgspec.Struct, kw_only=True):
    """One instance of a batch, in its valid run."""

    run: str
    state: str = RUNNING
    reason: str = ""
    where: Where
    next_offset: int
    """Facts about chunks before it were counted."""
    rows: int = 0
    dead_letters: int = 0
    messages: int = 0
    digest: int = 0
    announced: int = -1
    """Rows by the feeder's count; -1 until done."""
    updated_ms: int
    voided: list[str] = []


class Publish(NamedTuple):
    """All instances are done and match: have the sinks publish the batch, then say how it went."""

    batch: Batch
    runs: dict[str, tuple[Run, InstanceRange]]


class AbortRun(NamedTuple):
    """Have the sinks drop a run."""

    run: Run


@dataclass(frozen=True, slots=True)
class Tell:
    """A line for the log."""

    level: str
    operation: str
    fields: dict[str, Any]
    description: str


Effect = Publish | AbortRun | Tell


def batch_key(batch: str) -> bytes:
    """Key of a batch's value. The text is `Batch.key`."""
    return b"b/" + batch.encode()


def instance_key(batch: str, instance: str) -> bytes:
    """Key of an instance's value. The length keeps any two names apart, whatever characters they have."""
    raw = batch.encode()
    return b"i%d/%b/%b" % (len(raw), raw, instance.encode())


def batch_of(key: bytes) -> str:
    """`Batch.key` of either kind of key."""
    head, _, rest = key.partition(b"/")
    return (rest if head == b"b" else rest[: int(head[1:])]).decode()


class Ledger:
    """Reads and changes the states in `store`, a table's partition or a plain dict."""

    def __init__(self, store: Store, *, allow_dead_letters: bool = False) -> None:
        self._store, self._allow = store, allow_dead_letters

    # ------------------------------------------------------------------ reading
    def batch(self, key: str) -> BatchState | None:
        """State of a batch."""
        raw = self._store.get(batch_key(key))
        return None if raw is None else msgspec.json.decode(raw, type=BatchState)

    def instance(self, key: str, instance: str) -> InstanceState | None:
        """State of an instance; None before it began."""
        raw = self._store.get(instance_key(key, instance))
        return None if raw is None else msgspec.json.decode(raw, type=InstanceState)

    # ------------------------------------------------------------------ facts
    def apply(self, key: str, fact: Fact, at_ms: int) -> list[Effect]:
        """Take a fact about the batch `key` (Batch.key), recorded at `at_ms` (Unix ms). What is to be done about it."""
        batch = self.batch(key)
        if batch is None:
            if not isinstance(fact, Begun):
                return [_tell("warning", "batch_unknown", key, "a fact about a batch that never began here")]
            self._prune(at_ms)
            batch = BatchState(instances=sorted(set(fact.instances)), begun_ms=at_ms, updated_ms=at_ms)
            return [
                _tell("info", "cluster_dump_start", key, "first instance began", instances=len(batch.instances)),
                *self._begun(key, batch, fact, at_ms),
            ]
        if isinstance(fact, AbortBatch):
            return self._abort(key, batch, fact, at_ms)
        if batch.state in (PUBLISHED, ABORTED):
            # A finished batch stays finished. What an aborted one still gets is dropped.
            runs = batch.state == ABORTED and isinstance(fact, Begun | InstanceDone)
            return [AbortRun(_run(key, fact.instance, fact.run))] if runs else []
        if isinstance(fact, Begun):
            return self._begun(key, batch, fact, at_ms)
        state = self.instance(key, fact.instance)
        if state is None or state.run != fact.run or state.state != RUNNING:
            return []  # of a void run, or said before
        if isinstance(fact, Progress):
            return self._progress(key, batch, state, fact, at_ms)
        if isinstance(fact, InstanceFailed):
            return self._fail(key, batch, state, fact.instance, fact.reason, at_ms)
        return self._done(key, batch, state, fact, at_ms)

    def published(self, key: str, at_ms: int) -> list[Effect]:
        """All sinks have published the batch."""
        batch = self._known(key)
        batch.state, batch.reason, batch.updated_ms = PUBLISHED, "", at_ms
        self._put(key, batch)
        fields = {"processed_records": batch.rows, "instances": len(batch.instances), "rps": rate(batch)}
        return [
            _tell("info", "batch_finalized", key, "all sinks show the batch", **fields),
            _tell("info", "dump_completed", key, "nothing is left to do", **fields),
        ]

    def refused(self, key: str, reason: str, at_ms: int) -> list[Effect]:
        """A sink will not publish the batch."""
        batch = self._known(key)
        batch.state, batch.reason, batch.updated_ms = FAILED, reason, at_ms
        self._put(key, batch)
        return [_tell("error", "batch_refused", key, reason)]

    # ------------------------------------------------------------------ one kind each
    def _begun(self, key: str, batch: BatchState, fact: Begun, at_ms: int) -> list[Effect]:
        before = self.instance(key, fact.instance)
        if before is not None and fact.run in (before.run, *before.voided):
            return []
        state = InstanceState(run=fact.run, where=fact.where, next_offset=fact.where.begin + 1, updated_ms=at_ms)
        if before is not None:
            state.voided = [*before.voided, before.run][-VOIDED_KEPT:]
            batch.rows -= before.rows
            batch.dead_letters -= before.dead_letters
        self._put(key, state, fact.instance)
        batch.updated_ms = at_ms
        if twice := listed_twice(fact.instances):
            reason = f"has a manifest that lists {twice} twice: feed it again (--new-run) with each instance once"
            return self._fail(key, batch, state, fact.instance, reason, at_ms)
        if sorted(fact.instances) != batch.instances:
            odd = ", ".join(sorted(set(fact.instances) ^ set(batch.instances)))
            reason = f"was fed for another set of instances than the batch began with; they differ in: {odd}"
            return self._fail(key, batch, state, fact.instance, reason, at_ms)
        if fact.instance not in batch.instances:
            return self._fail(key, batch, state, fact.instance, "is not in its own manifest", at_ms)
        self._judge(key, batch)
        return []

    def _progress(self, key: str, batch: BatchState, state: InstanceState, fact: Progress, at_ms: int) -> list[Effect]:
        if fact.first < state.next_offset:
            return []  # counted
        state.next_offset = fact.last + 1
        state.rows += fact.rows
        state.dead_letters += fact.dead_letters
        state.messages += fact.messages
        state.digest = (state.digest + fact.digest) % (1 << 64)
        state.updated_ms = batch.updated_ms = at_ms
        batch.rows += fact.rows
        batch.dead_letters += fact.dead_letters
        self._put(key, state, fact.instance)
        self._put(key, batch)
        return []

    def _done(self, key: str, batch: BatchState, state: InstanceState, fact: InstanceDone, at_ms: int) -> list[Effect]:
        state.announced, state.where = fact.rows, fact.where
        if reason := self._mismatch(state, fact):
            return self._fail(key, batch, state, fact.instance, reason, at_ms)
        state.state, state.updated_ms, batch.updated_ms = DONE, at_ms, at_ms
        self._put(key, state, fact.instance)
        states = self._judge(key, batch)
        effects: list[Effect] = [
            _tell(
                "info",
                "instance_completed",
                key,
                "the sinks have it ready",
                instance=fact.instance,
                records=state.rows,
                completed_instances=f"{batch.done}/{len(batch.instances)}",
            )
        ]
        if batch.done == len(batch.instances):
            effects.append(Publish(Batch.from_key(key), {i: _placed(key, i, s) for i, s in states.items()}))
        return effects

    def _mismatch(self, state: InstanceState, fact: InstanceDone) -> str:
        """Why the run cannot count as done, or nothing (T26)."""
        if fact.stored != state.rows:
            return f"the sinks hold {fact.stored} rows, {state.rows} were reported chunk by chunk"
        if fact.stored + state.dead_letters != fact.rows:
            dead = f" and {state.dead_letters} are dead letters" if state.dead_letters else ""
            return f"{fact.rows} rows were announced, {fact.stored} are stored{dead}"
        if (state.messages, state.digest) != (fact.messages, fact.digest):
            return (
                f"{fact.messages} messages with digest {fact.digest} were announced, "
                f"{state.messages} with digest {state.digest} arrived"
            )
        if state.dead_letters and not self._allow:
            return (
                f"{state.dead_letters} of {fact.rows} rows could not be decoded: see topic {fact.where.topic}.dlq. "
                "To publish without them start the workers with MILLSTREAM_ALLOW_DEAD_LETTERS=true and feed the "
                "instance again (--new-run)"
            )
        return ""

    def _fail(
        self, key: str, batch: BatchState, state: InstanceState, instance: str, reason: str, at_ms: int
    ) -> list[Effect]:
        state.state, state.reason, state.updated_ms, batch.updated_ms = FAILED, reason, at_ms, at_ms
        self._put(key, state, instance)
        self._judge(key, batch)
        return [_tell("error", "producers_failed", key, reason, instance=instance)]

    def _abort(self, key: str, batch: BatchState, fact: AbortBatch, at_ms: int) -> list[Effect]:
        if batch.state in (PUBLISHED, ABORTED):
            return [_tell("warning", "batch_abort_ignored", key, f"the batch is {batch.state} already")]
        batch.state, batch.reason, batch.updated_ms = ABORTED, fact.reason, at_ms
        self._put(key, batch)
        found = ((i, self.instance(key, i)) for i in batch.instances)
        runs = [AbortRun(_run(key, i, s.run)) for i, s in found if s is not None]
        return [*runs, _tell("warning", "batch_aborted", key, fact.reason or "aborted by hand")]

    # ------------------------------------------------------------------ the rest
    def _judge(self, key: str, batch: BatchState) -> dict[str, InstanceState]:
        """Set the batch's state by its instances' states, and give these."""
        states = {i: s for i in batch.instances if (s := self.instance(key, i)) is not None}
        failed = [f"instance {i} {s.reason}" for i, s in states.items() if s.state == FAILED]
        batch.done = sum(s.state == DONE for s in states.values())
        batch.state = FAILED if failed else RUNNING
        batch.reason = "; ".join(failed[:3]) + (f"; and {len(failed) - 3} more" if len(failed) > 3 else "")
        self._put(key, batch)
        return states

    def _known(self, key: str) -> BatchState:
        batch = self.batch(key)
        if batch is None:
            raise KeyError(key)
        return batch

    def _put(self, key: str, value: BatchState | InstanceState, instance: str | None = None) -> None:
        at = batch_key(key) if instance is None else instance_key(key, instance)
        self._store[at] = msgspec.json.encode(value)

    def _prune(self, at_ms: int) -> None:
        """Forget batches that were finished long ago."""
        old = {
            name
            for name, batch in batches_in(self._store)
            if batch.state != RUNNING and batch.updated_ms < at_ms - KEEP_MS
        }
        if old:
            for key in [k for k in self._store if batch_of(k) in old]:
                del self._store[key]


def batches_in(store: Store) -> Iterator[tuple[str, BatchState]]:
    """All batches of a store: (Batch.key, state)."""
    for key, value in list(store.items()):
        if key.startswith(b"b/"):
            yield batch_of(key), msgspec.json.decode(value, type=BatchState)


def rate(batch: BatchState) -> int:
    """Rows per second from the first fact to the last one, by the times of the records."""
    return round(batch.rows / max(0.001, (batch.updated_ms - batch.begun_ms) / 1000))


def _run(key: str, instance: str, run: str) -> Run:
    return Run(Batch.from_key(key), instance, run)


def _placed(key: str, instance: str, state: InstanceState) -> tuple[Run, InstanceRange]:
    return _run(key, instance, state.run), range_of(state.where)


def range_of(where: Where) -> InstanceRange:
    """The range as sinks take it."""
    return InstanceRange(where.topic_id, where.epoch, where.partition, where.begin, where.done, where.exclusive)


def _tell(level: str, operation: str, key: str, description: str, **fields: Any) -> Tell:
    batch = Batch.from_key(key)
    return Tell(level, operation, {"cluster": batch.cluster, "batch": batch.rfc3339, **fields}, description)
