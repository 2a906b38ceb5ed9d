"""What outlives workers: the broker, sinks, disks; what may happen to them, and what must hold whatever happens."""

from __future__ import annotations

import json
from collections import Counter

from millstream.cluster import TP
from sinks.memory import MemorySink
from tables.store import StorePosition
from tests.model.broker import Broker
from tests.model.clients import topic_id
from tests.model.kernel import Clock, Request
from tests.model.sinks import ClickHouse
from tests.model.worker import CHANGELOG, SimWorker
from tests.unit.engine.world import BAD

PARTITIONS = 2
TOPICS = {"t": PARTITIONS, "out": PARTITIONS, CHANGELOG: PARTITIONS, "t.dlq": 1, "model-registry": 1}
SOURCES = [TP("t", p) for p in range(PARTITIONS)]


class World:
    """One run of the model."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.broker = Broker(TOPICS)
        self.files, self.clickhouse = MemorySink("files"), ClickHouse()
        self.disks: dict[str, tuple[dict[int, dict[bytes, bytes]], dict[int, StorePosition]]] = {}
        self.workers: dict[str, SimWorker] = {}
        """Slot -> the process there, alive."""
        self.late: list[Request] = []
        """Requests on the wire whose process is gone, or no longer waits for them."""

    # ------------------------------------------------------------------ what happens
    def produce(self, partition: int, keys: str) -> None:
        """A record per key; `!` is one that cannot be decoded."""
        log = self.broker.logs[TP("t", partition)]
        log.append(
            [(None, BAD if k == "!" else b"%s%d@%d" % (k.encode(), partition, log.end + i)) for i, k in enumerate(keys)]
        )

    def start(self, slot: str, rows: int, age: float) -> SimWorker:
        """A worker in a slot that is free."""
        assert slot not in self.workers
        worker = self.workers[slot] = SimWorker(self, slot, rows, age)
        return worker

    def kill(self, slot: str) -> None:
        """kill -9."""
        self.late += [r for r in self.workers.pop(slot).kill() if r.kind != "join"]

    def reap(self) -> None:
        """Processes that ended by themselves leave their slots; an error nobody took care of is one of the engine."""
        for slot, worker in list(self.workers.items()):
            if worker.broken is not None:
                raise worker.broken
            if worker.dead is not None:
                self.kill(slot)

    def expel(self, slot: str) -> None:
        """The group hears nothing of the worker for its session timeout."""
        self.broker.group.expel(self.workers[slot].member)

    @property
    def dead_members(self) -> list[str]:
        """Members of the group whose processes are gone."""
        alive = {w.member for w in self.workers.values()}
        return [m for m in self.broker.group.members if m not in alive]

    def forget_the_dead(self) -> None:
        """Session timeouts of processes that are gone."""
        for member in self.dead_members:
            self.broker.group.expel(member)

    # ------------------------------------------------------------------ what must hold
    def check(self) -> None:
        """At any moment: nothing twice, nothing that was not sent, nothing committed that is missing."""
        sent = {tp: {r.offset: r.value for r in self.broker.logs[tp].records_sent()} for tp in SOURCES}
        for name, rows in (("files", self.in_files()), ("clickhouse", self.in_clickhouse())):
            twice = [row for row, n in Counter(row[:2] for row in rows).items() if n > 1]
            assert not twice, f"doubled in {name}: {twice}"
            for tp, offset, value in rows:
                assert sent[tp].get(offset) == value, f"wrong in {name}: {tp} {offset} {value!r}"
            held = {row[:2] for row in rows}
            for tp, (offset, _) in self.broker.group.offsets.items():
                missing = {o for o, v in sent[tp].items() if o < offset and v != BAD and (tp, o) not in held}
                assert not missing, f"missing in {name}: {tp} {missing}"
        outputs = self.outputs()
        twice = [o for o, n in Counter(outputs).items() if n > 1]
        assert not twice, f"doubled in out: {twice}"
        if not self.broker.markers:
            self._check_committed(outputs, sent)

    def _check_committed(self, outputs: list[tuple[TP, int]], sent: dict[TP, dict[int, bytes]]) -> None:
        """No transaction is half visible: outputs and table values are those of the committed positions."""
        for tp in SOURCES:
            offset = self.broker.group.offsets.get(tp, (0, ""))[0]
            good = {o: v for o, v in sent[tp].items() if o < offset and v != BAD}
            found = {o for p, o in outputs if p == tp}
            assert found == set(good), f"out is wrong: {tp} committed to {offset}, {sorted(found)}"
            counts = Counter(v[:1] for v in good.values())
            table = {r.key: int(r.value or 0) for r in self.broker.logs[TP(CHANGELOG, tp.partition)].committed}
            assert table == counts, f"table is wrong: {tp} {table} instead of {dict(counts)}"
        letters = len(self.broker.logs[TP("t.dlq", 0)].committed)
        bad = sum(
            v == BAD for tp in SOURCES for o, v in sent[tp].items() if o < self.broker.group.offsets.get(tp, (0, ""))[0]
        )
        assert letters == bad, f"{letters} dead letters for {bad} bad records"

    def check_counts(self) -> None:
        """In the end: the running counts in the outputs are 1, 2, 3… of each key, so no chunk saw a stale table."""
        seen: dict[tuple[int, str], list[int]] = {}
        for p in range(PARTITIONS):
            for r in self.broker.logs[TP("out", p)].committed:
                value = json.loads(r.value or b"")
                seen.setdefault((value["p"], value["k"]), []).append(value["n"])
        for key, found in seen.items():
            assert sorted(found) == list(range(1, len(found) + 1)), f"table was stale: {key} counted {found}"

    def check_rules(self) -> None:
        """Whether a rule was broken, even if it does not show: a stale commit, a range written before its plan."""
        assert not self.broker.violations, "; ".join(self.broker.violations)

    def in_files(self) -> list[tuple[TP, int, bytes]]:
        return [
            (TP("t", c.id.partition), row["_offset"], row["value"])
            for c in self.files.chunks.values()
            for row in c.records.to_pylist()
        ]

    def in_clickhouse(self) -> list[tuple[TP, int, bytes]]:
        return [(TP("t", p), offset, value) for _, p, offset, value in self.clickhouse.rows]

    def outputs(self) -> list[tuple[TP, int]]:
        found = []
        for p in range(PARTITIONS):
            for r in self.broker.logs[TP("out", p)].committed:
                value = json.loads(r.value or b"")
                found.append((TP("t", value["p"]), value["o"]))
        return found

    @property
    def finished(self) -> bool:
        """Everything that was sent is committed."""
        offsets = self.broker.group.offsets
        return all(offsets.get(tp, (0, ""))[0] >= self.broker.logs[tp].last_sent + 1 for tp in SOURCES)


__all__ = ["SOURCES", "World", "topic_id"]
