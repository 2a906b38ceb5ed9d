"""Reads a Redis or Valkey RDB file as Arrow record batches, one row per key, in near-constant memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from millstream.errors import ConfigError
from sources.rdb.columns import BadRowError, to_batch
from sources.rdb.entry import SUPPORTED, Entry, read_entry
from sources.rdb.scan import Segment, scan
from sources.rdb.slots import codis_slot, redis_slot
from sources.rdb.values import REDIS_VALUES, VALKEY_VALUES
from sources.rdb.window import ByteSource, Window, WindowEnd

HEADER = 9
_CHECKSUM_SINCE = 5
"""RDB version that added the checksum at the end."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two keys of a file, from where another reader can go on. All fields fit into JSON."""

    offset: int
    """Byte offset in the file."""
    db: int
    """Database selected there."""
    magic: str
    """First nine bytes of the file, like `REDIS0012`."""
    crc64: int
    """CRC-64/REDIS of the file up to the offset."""
    rows: int
    """Keys before the offset."""

    def to_dict(self) -> dict[str, int | str]:
        """For JSON; `Position(**fields)` is the way back."""
        return asdict(self)


class RdbReader:
    """Iterates over the keys of an RDB file as record batches of `schemas.records.WIRE`.

    Every batch has exactly `batch_rows` rows, or fewer where one more key would make more than `batch_bytes` bytes of
    keys (one larger key alone is a batch of one row) and at the end. So the batches are the same every time, wherever
    reading begins. After each batch `position` is the place behind its last key: with it, `RdbReader(file,
    resume=position)` goes on exactly there.

    The file's checksum is verified behind the last batch, so the rows are proven only when the iteration has ended.

    Memory: about two buffers and one batch, however long the values are. Whole in memory are keys, and packed values
    of 65,535 elements or more, whose headers do not tell the number.

    Raises CorruptSourceError, naming file and byte offset, when the file is truncated or corrupt, is followed by other
    bytes, or has something that is not known. OSErrors of the file come as they are.
    """

    def __init__(
        self,
        file: ByteSource,
        *,
        name: str | None = None,
        resume: Position | None = None,
        batch_rows: int = 8192,
        batch_bytes: int = 512 * 1024,
        buffer_size: int = 1024 * 1024,
        slots: Literal["codis", "redis"] | None = None,
    ) -> None:
        """Open `file`, which a path's file or any readable binary stream can be; only `resume` needs seeking.

        `name` stands for the file in errors. `slots` fills `codis_slot` (source Codis) or `redis_slot` (source Redis
        Cluster); otherwise both are null.
        """
        if min(batch_rows, batch_bytes, buffer_size) < 1:
            raise ConfigError("batch_rows, batch_bytes and buffer_size must be at least 1")
        if resume is not None and not file.seekable():
            raise ConfigError(f"{name or file}: reading cannot resume at byte {resume.offset}, the file cannot seek")
        self._batch_rows = batch_rows
        self._batch_bytes = batch_bytes
        self._slots = (codis_slot if slots == "codis" else None, redis_slot if slots == "redis" else None)
        self._pending: Entry | None = None
        where = name or str(getattr(file, "name", "RDB stream"))
        if resume is None:
            self._window = Window(file, where, buffer_size)
            header = self._window.take(HEADER)
            self._magic = header.decode("ascii", "backslashreplace")
            self._db = self._rows = 0
        else:
            self._window = Window(file, where, buffer_size, offset=resume.offset, crc=resume.crc64)
            self._magic, self._db, self._rows = resume.magic, resume.db, resume.rows
        self.version = self._parse_magic()
        self._values = VALKEY_VALUES if self._magic.startswith("VALKEY") else REDIS_VALUES
        self.position = self._here()
        """Place behind the last batch given out."""

    def _parse_magic(self) -> int:
        magic = self._magic
        if magic == "VALKEY080":
            return 80
        version = int(magic[5:]) if re.fullmatch("REDIS[0-9]{4}", magic) else 0
        if not 1 <= version <= 12:
            self._window.corrupt(f"the file begins with {magic!r}; supported are {SUPPORTED}", 0)
        return version

    def _here(self) -> Position:
        return Position(self._window.offset, self._db, self._magic, self._window.checksum(), self._rows)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """The batches from `position` on."""
        parts: list[pa.RecordBatch] = []
        rows = key_bytes = 0
        while True:
            segment = self._scan(self._batch_rows - rows, self._batch_bytes - key_bytes)
            if not segment.starts:
                here = self._here()
                entry = self._pending or read_entry(self._window, self._db, self._values)
                self._pending = None
                too_much = entry.key is not None and key_bytes + len(entry.key) > self._batch_bytes
                if rows and (entry.eof or too_much):
                    self._pending, self.position = entry, here
                    yield _join(parts)
                    parts, rows, key_bytes = [], 0, 0
                    continue
                if entry.eof:
                    self._finish()
                    return
                self._db = entry.db
                if entry.key is None:
                    continue
                segment = Segment(b"\x00", entry.db)  # the window has slid on: the entry has it all
                segment.add(entry, entry.key)
            part = self._to_batch(segment)
            parts.append(part)
            rows += part.num_rows
            self._rows += part.num_rows
            key_bytes += _key_bytes(part)
            if rows == self._batch_rows:
                self.position = self._here()
                yield _join(parts)
                parts, rows, key_bytes = [], 0, 0

    def _scan(self, rows: int, key_bytes: int) -> Segment:
        """The next rows that lie in the window as a whole and surely stay within the limits; maybe none."""
        window = self._window
        if self._pending is not None:
            return Segment(window.data, self._db)
        window.prepare()
        segment = Segment(window.data, self._db)
        window.pinned = True
        while len(segment.starts) < rows:
            boundary = window.pos = scan(segment, window.pos, rows, key_bytes)
            if len(segment.starts) == rows:
                break
            try:
                entry = read_entry(window, self._db, self._values)
            except WindowEnd:
                window.pos = boundary
                break
            too_much = entry.key is not None and not segment.has_room(len(entry.key), key_bytes)
            if entry.eof or too_much or (segment.starts and entry.db != self._db):
                window.pos = boundary
                break
            self._db = segment.db = entry.db
            if entry.key is not None:
                segment.add(entry, entry.key)
        window.pinned = False
        return segment

    def _to_batch(self, segment: Segment) -> pa.RecordBatch:
        base = self._window.base
        try:
            return to_batch(segment, *self._slots)
        except BadRowError as error:
            self._window.corrupt(str(error), base + error.position)

    def _finish(self) -> None:
        """Behind the end mark: verify the checksum, and that nothing follows."""
        window = self._window
        if self.version >= _CHECKSUM_SINCE:
            found, at = window.checksum(), window.offset
            stated = int.from_bytes(window.take(8), "little")
            if stated not in (0, found):  # 0: written with `rdbchecksum no`
                window.corrupt(f"the checksum is {stated:016x}, the bytes before it give {found:016x}", at)
        if window.pos < len(window.data) or window.fill():
            window.corrupt("bytes follow the end of the RDB data")
        self.position = self._here()


def _join(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    return parts[0] if len(parts) == 1 else pa.concat_batches(parts)


def _key_bytes(batch: pa.RecordBatch) -> int:
    return int(pc.sum(pc.binary_length(batch.column("key"))).as_py())
