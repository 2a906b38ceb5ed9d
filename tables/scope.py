"""Which chunk the running code belongs to: table changes and output records made in it go into its transaction."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

import faust

from millstream.errors import MillstreamError

Changes = dict[bytes, bytes | None]
"""Changed keys of one table: the new value, None for a deleted key. Coalesced: one entry per key."""


class OutsideChunkError(MillstreamError):
    """A table was changed where no chunk is being processed, or after its chunk was abandoned."""


class Scope(Protocol):
    """What a table has to know of the chunk that is being processed."""

    @property
    def table_partition(self) -> int:
        """Number of the partition, the same for the source topic and the changelog."""

    def table_changes(self, table: str) -> Changes:
        """The chunk's changes of this table so far. Raises OutsideChunkError if the chunk is no longer ours."""


CURRENT: ContextVar[Scope | None] = ContextVar("millstream_chunk", default=None)
"""Set in the task of a chunk agent. Faust's own `current_event()` is a weak reference, lost in spawned tasks."""


def current() -> Scope | None:
    """The chunk that the running code belongs to."""
    scope = CURRENT.get()
    if scope is None and (event := faust.current_event()) is not None:
        scope = getattr(event.message, "chunk", None)  # a plain agent: its event came out of a chunk
    return scope
