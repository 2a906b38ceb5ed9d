"""Where a replay reads: slices of records, each of one partition and in order, with the place to go on from."""

from __future__ import annotations

from typing import NamedTuple

from schemas.chunk import ChunkId
from schemas.log_records import LogRecord

ROWS = 5000
"""Records of a slice: what is applied in one transaction, and so how long live workers wait for its rows."""


class Slice(NamedTuple):
    """Some records, and who they are for `millstream.positions`."""

    at: ChunkId
    records: list[LogRecord]
    cursor: str = ""
    """Where the source goes on, if the offset does not say it."""


class Held(NamedTuple):
    """How far an earlier life has come in a partition."""

    topic_id: str
    last: int
    cursor: str
