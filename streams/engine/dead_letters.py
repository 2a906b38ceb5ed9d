"""Dead letters: a record that cannot be processed goes, with its original bytes, to `<topic>.dlq`, in the same
transaction that moves the position past it (T13)."""

from __future__ import annotations

from schemas.codecs import Rejected
from schemas.names import dlq_topic
from streams.engine.chunk import Chunk, Output

HEADER = "millstream.dlq."
"""Prefix of the headers we add; the original ones stay as they are."""

REASON_CHARS = 2000


def dead_letter(chunk: Chunk, rejected: Rejected) -> Output:
    """The record for the dead-letter topic."""
    record = rejected.record
    added = {
        "reason": rejected.reason[:REASON_CHARS],
        "topic": chunk.topic,
        "partition": str(chunk.partition),
        "offset": str(record.offset),
        "timestamp": str(record.timestamp),
    }
    headers = [*record.headers, *((HEADER + name, text.encode()) for name, text in added.items())]
    return Output(dlq_topic(chunk.topic), record.key, record.value, -1, 0, headers)
