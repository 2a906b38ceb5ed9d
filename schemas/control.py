"""Control records of a dump's topics, and the facts about a batch that the archive tells the coordinator.

A topic of dump records holds, per run: `begin`, many `rows`, `done` (or `abort`). What a message is stands in its
headers; the bodies of the three control kinds are JSON. Facts go to `rdb.batches`, keyed by `Batch.key`.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import pyarrow as pa

from schemas.batch import Batch, Run
from schemas.codecs import OFFSET, Decoded, Rejected

KIND: Final = "millstream.kind"
RUN: Final = "millstream.run"
BATCH: Final = "millstream.batch"
INSTANCE: Final = "millstream.instance"
ROWS: Final = "millstream.rows"

BEGIN: Final = "begin"
DATA: Final = "rows"
DONE: Final = "done"
ABORT: Final = "abort"
CONTROL: Final = frozenset({BEGIN, DONE, ABORT})

MAX_ROWS: Final = 10_000_000
"""Rows that one message may announce: what a header says decides how a chunk is cut, so it is not believed blindly."""

VERSION: Final = 1
"""Of bodies and facts. Readers accept every version up to theirs, and fields they do not know."""

_RUN_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_DIGEST_MODULUS = 1 << 64

Headers = Sequence[tuple[str, bytes | None]]


class Label(NamedTuple):
    """What a message of a records topic says of itself in its headers."""

    kind: str
    run: Run
    rows: int
    """Rows announced; 0 for control records."""


def headers_of(kind: str, run: Run, rows: int | None = None) -> list[tuple[str, bytes]]:
    """The headers of a message."""
    pairs = {KIND: kind, RUN: run.run_id, BATCH: run.batch.key, INSTANCE: run.instance}
    if rows is not None:
        pairs[ROWS] = str(rows)
    return [(name, value.encode()) for name, value in pairs.items()]


def header(headers: Headers, name: str) -> bytes | None:
    """The last value under a name (T60: headers may repeat)."""
    found = None
    for key, value in headers:
        if key == name:
            found = value
    return found


def announced_rows(headers: Headers) -> int:
    """Rows by the header; 1 where it is missing or absurd, so that the message still counts for something."""
    text = header(headers, ROWS) or b""
    return int(text) if text.isdigit() and len(text) <= 8 and int(text) <= MAX_ROWS else 1


def label_of(headers: Headers) -> Label:
    """Read the headers. Raises ValueError that names the header and what is wrong."""
    found = {name: header(headers, name) for name in (KIND, RUN, BATCH, INSTANCE)}
    for name, value in found.items():
        if not value:
            raise ValueError(f"header {name} is missing")
    kind, run_id, key, instance = ((found[n] or b"").decode() for n in (KIND, RUN, BATCH, INSTANCE))
    if kind != DATA and kind not in CONTROL:
        raise ValueError(f"header {KIND} is {kind!r}: begin, rows, done or abort are known")
    if not _RUN_ID.fullmatch(run_id):
        raise ValueError(f"header {RUN} is {run_id!r}: 32 hexadecimal digits are expected")
    batch = Batch.from_key(key)
    if not batch.cluster or batch.key != key:
        raise ValueError(f"header {BATCH} is {key!r}: <RFC 3339 time with nine digits>/<cluster> is expected")
    rows = 0
    if kind == DATA:
        text = header(headers, ROWS)
        if text is None or not text.isdigit() or len(text) > 8 or int(text) > MAX_ROWS:
            raise ValueError(f"header {ROWS} is {text!r}: a number up to {MAX_ROWS} is expected")
        rows = int(text)
    return Label(kind, Run(batch, instance, run_id), rows)


def add_digest(digest: int, values: Iterable[bytes]) -> int:
    """The digest of a run after some more messages: the sum of their CRC-32, so order does not matter."""
    return (digest + sum(map(zlib.crc32, values))) % _DIGEST_MODULUS


# ---------------------------------------------------------------------- bodies of control records
class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """A run begins."""

    instances: list[str]
    """All instances that the batch consists of, this one included (T25)."""
    source: dict[str, Any] = {}
    """Where the rows come from, for people."""
    v: int = VERSION


def listed_twice(instances: Iterable[str]) -> str:
    """An instance that a manifest lists more than once (such a batch could never be complete), or empty text."""
    return next((name for name, count in Counter(instances).items() if count > 1), "")


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """All rows of the run were sent before this."""

    rows: int
    messages: int
    digest: int
    begin: int
    """Offset of the run's `begin` record."""
    v: int = VERSION


class Abort(msgspec.Struct, frozen=True, kw_only=True):
    """The source failed; the run is void."""

    reason: str
    v: int = VERSION


_BODIES: dict[str, type[Begin | Done | Abort]] = {BEGIN: Begin, DONE: Done, ABORT: Abort}


def read_body(kind: str, value: bytes | None) -> Begin | Done | Abort:
    """The body of a control record. Raises ValueError."""
    if value is None:
        raise ValueError(f"{kind} record without a value")
    try:
        body = msgspec.json.decode(value, type=_BODIES[kind])
    except msgspec.MsgspecError as exc:
        raise ValueError(f"{kind} record: {exc}") from exc
    _check_version(f"{kind} record", body.v)
    return body


# ---------------------------------------------------------------------- facts
class Where(msgspec.Struct, frozen=True, kw_only=True):
    """The stretch of a log that a run takes: what `sinks.base.InstanceRange` needs."""

    topic: str
    topic_id: str
    epoch: int
    partition: int
    begin: int
    done: int = -1
    """-1 while the run is under way."""
    exclusive: bool = True


class _Fact(msgspec.Struct, frozen=True, kw_only=True, tag_field="fact"):
    v: int = VERSION


class Begun(_Fact, tag="begun", frozen=True, kw_only=True):
    """A run began."""

    run: str
    instance: str
    instances: list[str]
    where: Where


class Progress(_Fact, tag="progress", frozen=True, kw_only=True):
    """A chunk's rows of one run are in the sinks."""

    run: str
    instance: str
    first: int
    last: int
    """Range of the chunk: what was counted up to `last` is not counted again (T33)."""
    rows: int
    dead_letters: int
    """Rows that messages announced which could not be decoded."""
    messages: int
    digest: int


class InstanceDone(_Fact, tag="instance_done", frozen=True, kw_only=True):
    """The sinks have the instance ready."""

    run: str
    instance: str
    stored: int
    """Rows of the run in each sink."""
    rows: int
    messages: int
    digest: int
    """The three as the feeder announced them."""
    where: Where


class InstanceFailed(_Fact, tag="instance_failed", frozen=True, kw_only=True):
    """The run came to nothing: refused by a sink, or aborted by its feeder."""

    run: str
    instance: str
    reason: str


class AbortBatch(_Fact, tag="abort", frozen=True, kw_only=True):
    """Somebody ends the batch (`millstream batches abort`)."""

    reason: str


Fact = Begun | Progress | InstanceDone | InstanceFailed | AbortBatch


def encode_fact(fact: Fact) -> bytes:
    """The value of a record in `rdb.batches`."""
    return msgspec.json.encode(fact)


def decode_fact(value: bytes) -> Fact:
    """Raises ValueError for a fact that is not known here."""
    try:
        fact: Fact = msgspec.json.decode(value, type=Fact)
    except msgspec.MsgspecError as exc:
        raise ValueError(f"not a fact about a batch: {exc}") from exc
    _check_version("fact", fact.v)
    return fact


def _check_version(what: str, version: int) -> None:
    if not 1 <= version <= VERSION:
        raise ValueError(f"{what} of version {version}; versions 1 to {VERSION} are known here")


class FactCodec:
    """Records of `rdb.batches`: columns `batch` (its key), `fact` (JSON), `at_ms` (the record's time), `_offset`."""

    schema = pa.schema([("batch", pa.utf8()), ("fact", pa.binary()), ("at_ms", pa.int64()), OFFSET])
    rows_of: Callable[[Any], int] | None = None
    is_control: Callable[[Any], bool] | None = None

    def decode(self, records: Sequence[Any]) -> Decoded:
        """Facts that are not known, or without a batch, are rejected."""
        rows, rejected = [], list[Rejected]()
        for record in records:
            try:
                key = (record.key or b"").decode()
                if Batch.from_key(key).key != key:
                    raise ValueError(f"key {key!r} is no batch")
                decode_fact(record.value or b"")
            except ValueError as exc:
                rejected.append(Rejected(record, str(exc)[:500]))
            else:
                rows.append({"batch": key, "fact": record.value, "at_ms": record.timestamp, "_offset": record.offset})
        return Decoded(pa.Table.from_pylist(rows, schema=self.schema), rejected)
