"""Codec of the records topics, and how a chunk is told apart by run (several share a topic in the shared layout)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from schemas.batch import Run
from schemas.codecs import ArrowCodec, Rejected
from schemas.control import CONTROL, DATA, KIND, add_digest, announced_rows, header, label_of
from schemas.records import WIRE

_CONTROL = frozenset(kind.encode() for kind in CONTROL)


class RdbCodec(ArrowCodec):
    """Messages of kind `rows` become the columns of WIRE and `_offset`; control records get a chunk of their own."""

    def __init__(self) -> None:
        super().__init__(WIRE)
        self.rows_of = _announced
        self.is_control = _is_control

    def read(self, record: Any) -> pa.Table:
        """The rows of one message. Raises ValueError, TypeError, ArrowInvalid."""
        label = label_of(record.headers)
        if label.kind != DATA:
            raise ValueError(f"a {label.kind} record among rows")
        table = super().read(record)
        if table.num_rows != label.rows:
            raise ValueError(f"the message holds {table.num_rows} rows, its header says {label.rows}")
        table.validate(full=True)  # indices of the dictionaries too: a wrong one would crash a sink
        return table


def _announced(record: Any) -> int:
    return announced_rows(record.headers)


def _is_control(record: Any) -> bool:
    return header(record.headers, KIND) in _CONTROL


@dataclass(slots=True)
class RunPart:
    """What one chunk holds of one run."""

    run: Run
    table: pa.Table
    messages: int = 0
    dead_letters: int = 0
    """Rows announced by messages that could not be decoded."""
    digest: int = 0
    """Over all its messages, the undecodable ones too: the feeder's digest counts them."""


def split(records: Sequence[Any], table: pa.Table, rejected: Sequence[Rejected]) -> list[RunPart]:
    """Tell a decoded chunk apart by run, in order of appearance. Blocking: reads every byte for the digest.

    `table` holds the rows of all records but the rejected ones, in order. Records without readable headers belong to
    no run: they are missing from its counts, and so the batch cannot be published.
    """
    bad = {r.record.offset for r in rejected}
    parts: dict[Run, RunPart] = {}
    stretches: dict[Run, list[tuple[int, int]]] = {}
    known: dict[tuple[Any, ...], Run] = {}
    at = 0
    for record in records:
        headers = record.headers
        identity = tuple(pair for pair in headers if pair[0] != "millstream.rows")
        run = known.get(identity)
        rows = announced_rows(headers)
        if run is None:
            try:
                run = known[identity] = label_of(headers).run
            except ValueError:
                continue  # rejected by the codec for the same reason
        part = parts.setdefault(run, RunPart(run, table))
        part.messages += 1
        part.digest = add_digest(part.digest, [record.value or b""])
        if record.offset in bad:
            part.dead_letters += rows
            continue
        taken = stretches.setdefault(run, [])
        if taken and taken[-1][1] == at:
            taken[-1] = (taken[-1][0], at + rows)
        else:
            taken.append((at, at + rows))
        at += rows
    if at != table.num_rows:
        raise ValueError(f"the records announce {at} rows, the chunk has {table.num_rows}")
    for run, part in parts.items():
        slices = [table.slice(a, b - a) for a, b in stretches.get(run, [])]
        part.table = pa.concat_tables(slices) if slices else table.slice(0, 0)
    return list(parts.values())
