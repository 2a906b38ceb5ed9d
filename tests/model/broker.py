"""Kafka as far as the protocol leans on it: logs with transactions, group and transaction coordinator.

Without KIP-890, so that a late EndTxn decides whatever transaction its epoch has open (hole j). Markers land one by
one: the offsets' marker can be in the log before the changelog's (rule 4b).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import confluent_kafka as ck

from millstream.cluster import TP
from schemas.log_records import LogRecord, LogRecords
from streams.engine.fetch import Fetched
from streams.engine.plan import Position
from tests.model.kernel import Later

OFFSETS = TP("__consumer_offsets", 0)


def kafka_error(code: int, *, fatal: bool = False, abort: bool = False) -> ck.KafkaException:
    return ck.KafkaException(ck.KafkaError(code, None, fatal, False, abort))


@dataclass(slots=True, eq=False)
class Entry:
    """A record batch, or a marker (no records)."""

    first: int
    last: int
    crc: int
    records: list[LogRecord]
    pid: int | None = None
    state: str = "committed"


@dataclass(slots=True)
class Log:
    """One partition."""

    entries: list[Entry] = field(default_factory=list)
    end: int = 0

    def append(self, records: Iterable[tuple[bytes | None, bytes | None]], pid: int | None = None) -> int:
        """Add a batch of (key, value); gives its first offset."""
        first = self.end
        found = [LogRecord(first + i, 1_700_000_000_000, 0, k, v, ()) for i, (k, v) in enumerate(records)]
        self.end += len(found)
        crc = zlib.crc32(repr((first, found)).encode())
        self.entries.append(Entry(first, self.end - 1, crc, found, pid, "committed" if pid is None else "open"))
        return first

    def mark(self, pid: int, commit: bool) -> None:
        """The marker of a transaction."""
        for e in self.entries:
            if e.pid == pid and e.state == "open":
                e.state = "committed" if commit else "aborted"
        self.entries.append(Entry(self.end, self.end, 0, [], pid, "marker"))
        self.end += 1

    @property
    def stable(self) -> int:
        """The last stable offset."""
        return next((e.first for e in self.entries if e.state == "open"), self.end)

    def read(self, position: int, most: int = 1_000_000) -> list[Entry]:
        """Committed batches from a position on, below the last stable offset."""
        stable = self.stable
        found = [e for e in self.entries if e.last >= position and e.first < stable and e.state == "committed"]
        return found[:most]

    def fetch(self, position: int, most: int) -> list[Fetched]:
        """As `streams.engine.fetch` hands it over."""
        found = []
        for e in self.read(position, most):
            records = LogRecords.of([r for r in e.records if r.offset >= position])
            size = sum(len(r.value or b"") for r in records)
            found.append(Fetched(max(e.first, position), e.last, e.crc, records, size))
        return found

    def records_sent(self) -> list[LogRecord]:
        """Every record, of a topic that is not written in transactions."""
        return [r for e in self.entries for r in e.records]

    @property
    def last_sent(self) -> int:
        """Offset of the last record; -1 without any."""
        return next((e.last for e in reversed(self.entries) if e.records), -1)

    @property
    def committed(self) -> list[LogRecord]:
        """Every committed record."""
        return [r for e in self.entries if e.state == "committed" for r in e.records]


@dataclass(slots=True, eq=False)
class Txn:
    """What the coordinator knows of a transactional id."""

    pid: int
    epoch: int = 0
    state: str = "complete"
    """complete, ongoing, or decided (its markers are being written)."""
    commit: bool = False
    parts: set[TP] = field(default_factory=set)
    offsets: dict[TP, tuple[int, str]] = field(default_factory=dict)
    """Pending in the group until the offsets' marker."""


@dataclass
class Group:
    """The consumer group, with eager rebalancing."""

    generation: int = 0
    members: dict[str, Any] = field(default_factory=dict)
    """Member id -> process."""
    joined: set[str] = field(default_factory=set)
    """Who has rejoined in the rebalance under way."""
    rebalancing: bool = False
    offsets: dict[TP, tuple[int, str]] = field(default_factory=dict)
    made: int = 0

    def begin(self) -> None:
        """Somebody came or went."""
        if not self.rebalancing:
            self.rebalancing, self.joined = True, set()
        self.settle()

    def settle(self) -> None:
        """All who are members have rejoined: the next generation."""
        if self.rebalancing and self.members.keys() <= self.joined:
            self.generation += 1
            self.rebalancing = False

    def expel(self, member: str) -> None:
        """Session timeout."""
        if self.members.pop(member, None) is not None:
            self.joined.discard(member)
            self.begin()


class Broker:
    """All of it. Methods are the effects of requests."""

    def __init__(self, topics: dict[str, int]) -> None:
        self.topics = topics
        self.logs: dict[TP, Log] = {TP(t, p): Log() for t, n in topics.items() for p in range(n)}
        self.group = Group()
        self.txns: dict[str, Txn] = {}
        self.hold_markers = False
        self.planned: set[tuple[TP, int, int]] = set()
        """Every range that was ever on record."""
        self.violations: list[str] = []
        """Rules that were broken, whether or not it shows."""

    # ------------------------------------------------------------------ transactions
    def init(self, txid: str) -> tuple[int, int]:
        """InitProducerId: aborts what is open, raises the epoch."""
        txn = self.txns.setdefault(txid, Txn(pid=100 + len(self.txns), epoch=-1))
        if txn.state == "ongoing":
            self._decide(txn, commit=False, bump=True)
        if txn.state == "decided":
            raise Later
        txn.epoch += 1
        return txn.pid, txn.epoch

    def _txn(self, txid: str, epoch: int) -> Txn:
        txn = self.txns[txid]
        if txn.epoch != epoch:
            raise kafka_error(ck.KafkaError._FENCED, fatal=True)
        if txn.state == "decided":
            raise Later  # CONCURRENT_TRANSACTIONS: the client asks again
        return txn

    def add(self, txid: str, epoch: int, parts: set[TP]) -> None:
        """AddPartitionsToTxn, AddOffsetsToTxn."""
        txn = self._txn(txid, epoch)
        if txn.state == "complete":
            txn.state, txn.parts, txn.offsets = "ongoing", set(), {}
        txn.parts |= parts

    def produce(self, txid: str, epoch: int, tp: TP, records: list[tuple[bytes | None, bytes | None]]) -> int:
        """Produce, verified with the coordinator (KIP-890 part 1)."""
        txn = self._txn(txid, epoch)
        if txn.state != "ongoing" or tp not in txn.parts:
            raise kafka_error(ck.KafkaError.INVALID_TXN_STATE, fatal=True)
        return self.logs[tp].append(records, txn.pid)

    def commit_offsets(self, txid: str, epoch: int, metadata: bytes, offsets: dict[TP, tuple[int, str]]) -> None:
        """TxnOffsetCommit: the generation is checked here (KIP-447)."""
        txn = self._txn(txid, epoch)
        if txn.state != "ongoing" or OFFSETS not in txn.parts:
            raise kafka_error(ck.KafkaError.INVALID_TXN_STATE, fatal=True)
        generation = struct.unpack_from("<i", metadata, 7)[0]
        _, member, _ = metadata[11:].split(b"\0", 2)
        if generation >= 0 or member:
            if member.decode() not in self.group.members:
                raise kafka_error(ck.KafkaError.UNKNOWN_MEMBER_ID, abort=True)
            if generation != self.group.generation:
                raise kafka_error(ck.KafkaError.ILLEGAL_GENERATION, abort=True)
        if generation != self.group.generation:
            self.violations.append(f"{txid} committed as of generation {generation} in {self.group.generation}")
        txn.offsets |= offsets

    def end(self, txid: str, epoch: int, commit: bool) -> None:
        """EndTxn."""
        txn = self.txns[txid]
        if txn.epoch != epoch:
            raise kafka_error(ck.KafkaError._FENCED, fatal=True)
        if txn.state == "ongoing":
            self._decide(txn, commit)
        elif txn.commit != commit:
            raise kafka_error(ck.KafkaError.INVALID_TXN_STATE, fatal=True)

    def time_out(self, txid: str) -> None:
        """The transaction timeout: aborted and fenced."""
        if self.txns[txid].state == "ongoing":
            self._decide(self.txns[txid], commit=False, bump=True)

    def _decide(self, txn: Txn, commit: bool, bump: bool = False) -> None:
        txn.state, txn.commit = "decided", commit
        txn.epoch += bump
        for tp, (offset, metadata) in txn.offsets.items() if commit else ():
            if plan := Position.parse(offset, metadata).plan:
                self.planned.add((tp, plan.first, plan.last))
        if not self.hold_markers:
            self.write_markers()

    @property
    def markers(self) -> list[tuple[Txn, TP]]:
        """Markers that are still to be written."""
        return [(t, tp) for t in self.txns.values() if t.state == "decided" for tp in sorted(t.parts)]

    def write_marker(self, txn: Txn, tp: TP) -> None:
        """One of them."""
        txn.parts.discard(tp)
        if tp == OFFSETS:
            if txn.commit:
                self.group.offsets |= txn.offsets
            txn.offsets = {}
        else:
            self.logs[tp].mark(txn.pid, txn.commit)
        if not txn.parts:
            txn.state = "complete"

    def write_markers(self) -> None:
        """All of them."""
        for txn in self.txns.values():
            if txn.state == "decided":
                for tp in sorted(txn.parts):
                    self.write_marker(txn, tp)
                txn.state = "complete"

    # ------------------------------------------------------------------ group
    def join(self, process: Any) -> tuple[int, str, set[TP]]:
        """JoinGroup and SyncGroup in one: waits until everybody is there."""
        group = self.group
        if process.member not in group.members:
            group.made += 1
            process.member = f"m{group.made}"
            group.members[process.member] = process
            process.joining = False
        if not process.joining:
            process.joining = True
            group.begin()
        if group.rebalancing:
            group.joined.add(process.member)
            group.settle()
        if group.rebalancing:
            raise Later
        process.joining = False
        return group.generation, process.member, self.assignment(process.member)

    def assignment(self, member: str) -> set[TP]:
        """Partitions in turn, over the members in order of arrival."""
        members = list(self.group.members)
        parts = sorted(tp for tp in self.logs if tp.topic == "t")
        return {tp for i, tp in enumerate(parts) if members[i % len(members)] == member}

    def unstable(self, tps: Iterable[TP]) -> bool:
        """True while a transaction over the offsets of one of these is not decided."""
        return any(tp in t.offsets for t in self.txns.values() for tp in tps)
