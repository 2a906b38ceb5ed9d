"""A sliding window over the bytes of an RDB file, with the checksum of all that has passed."""

from __future__ import annotations

import io
from typing import NoReturn, Protocol

from millstream.errors import CorruptSourceError
from sources.rdb import blobs
from sources.rdb.crc64 import crc64

_MAX_STRING = 1 << 30
"""Longest string that is read whole (keys): twice Redis' own limit, and within Arrow's 32-bit offsets."""


class ByteSource(Protocol):
    """What is read from: a binary file, or anything that gives bytes in order."""

    def read(self, size: int = ..., /) -> bytes:
        """Up to `size` bytes; none at the end, and only there."""

    def seekable(self) -> bool:
        """Whether `seek` works."""

    def seek(self, offset: int, whence: int = ..., /) -> int:
        """As for files."""


class WindowEnd(Exception):
    """What was asked for lies behind the window, which is pinned."""


class Window:
    """`data[pos:]` is what comes next; `base + pos` is its offset in the file.

    While `pinned`, nothing slides: reading past the window raises WindowEnd, and `pos` may be set back. Otherwise
    reading slides the window on, and memory stays at about twice `buffer_size` however long the values are.
    """

    __slots__ = ("_buffer_size", "_crc", "_crc_pos", "_eof", "_file", "base", "data", "name", "pinned", "pos", "size")

    def __init__(self, file: ByteSource, name: str, buffer_size: int, *, offset: int = 0, crc: int = 0) -> None:
        self._file = file
        self.name = name
        self._buffer_size = buffer_size
        self.size: int | None = None
        """Bytes of the file, when it can tell."""
        if file.seekable():
            self.size = file.seek(0, io.SEEK_END)
            file.seek(offset)
        self.data = b""
        self.pos = 0
        self.base = offset
        self.pinned = False
        self._eof = False
        self._crc = crc
        self._crc_pos = 0

    @property
    def offset(self) -> int:
        """Offset in the file of what comes next."""
        return self.base + self.pos

    def checksum(self) -> int:
        """CRC-64 of the file up to `offset`. `pos` must not be set back before this point afterwards."""
        if self._crc_pos < self.pos:
            self._crc = crc64(memoryview(self.data)[self._crc_pos : self.pos], self._crc)
            self._crc_pos = self.pos
        return self._crc

    def corrupt(self, what: str, offset: int | None = None) -> NoReturn:
        """Raise CorruptSourceError naming the file and the offset (default: the present one)."""
        raise CorruptSourceError(f"{self.name}: {what}, at byte {self.offset if offset is None else offset}")

    def fill(self) -> bool:
        """Drop what has been read and read on. False at the end of the file."""
        if self._eof:
            return False
        chunk = self._file.read(self._buffer_size)
        if not chunk:
            self._eof = True
            return False
        self.checksum()
        self.data = self.data[self.pos :] + chunk
        self.base += self.pos
        self.pos = self._crc_pos = 0
        return True

    def prepare(self) -> None:
        """Read on when less than half a buffer is left."""
        if len(self.data) - self.pos < self._buffer_size // 2:
            self.fill()

    def need(self, count: int) -> None:
        """Have `count` bytes (a few: they are kept in memory) in the window."""
        while len(self.data) - self.pos < count:
            if self.pinned:
                raise WindowEnd
            if not self.fill():
                self.corrupt("the file is truncated: it ends here", self.base + len(self.data))

    def byte(self) -> int:
        """The next byte."""
        if self.pos >= len(self.data):
            self.need(1)
        value = self.data[self.pos]
        self.pos += 1
        return value

    def integer(self, size: int) -> int:
        """A signed little-endian integer of `size` bytes."""
        self.need(size)
        value = int.from_bytes(self.data[self.pos : self.pos + size], "little", signed=True)
        self.pos += size
        return value

    def peek(self, count: int) -> bytes:
        """The next `count` bytes (a few), which remain to be read."""
        self.need(count)
        return self.data[self.pos : self.pos + count]

    def expect(self, count: int) -> None:
        """Refuse at once a length that the rest of the file cannot hold."""
        if self.size is not None and count > self.size - self.offset:
            self.corrupt(f"the file is truncated or corrupt: {count} bytes should follow, {self.size - self.offset} do")

    def skip(self, count: int) -> None:
        """Pass over `count` bytes without keeping them."""
        end = self.pos + count
        if end > len(self.data):
            self.expect(count)
            if self.pinned:
                raise WindowEnd
            while end > len(self.data):
                end -= len(self.data)
                self.pos = len(self.data)
                if not self.fill():
                    self.need(1)
        self.pos = end

    def take(self, count: int) -> bytes:
        """The next `count` bytes, all of them in memory."""
        self.expect(count)
        if count > _MAX_STRING:
            self.corrupt(f"a string of {count} bytes is longer than Redis allows")
        end = self.pos + count
        if end <= len(self.data):
            value = self.data[self.pos : end]
            self.pos = end
            return value
        if self.pinned:
            raise WindowEnd
        parts = []
        while count:
            self.need(1)
            part = self.data[self.pos : self.pos + count]
            self.pos += len(part)
            count -= len(part)
            parts.append(part)
        return b"".join(parts)

    def length(self) -> int:
        """A length (or another unsigned number) in RDB's length encoding."""
        if self.pos < len(self.data) and (first := self.data[self.pos]) < 0x40:
            self.pos += 1
            return first
        value, special = self.length_or_special()
        if special:
            self.corrupt(f"a length is expected, not a string encoding ({value})", self.offset - 1)
        return value

    def length_or_special(self) -> tuple[int, bool]:
        """A length and False, or the number of a special string encoding and True."""
        first = self.byte()
        if first < 0x40:
            return first, False
        if first < 0x80:
            return (first & 0x3F) << 8 | self.byte(), False
        if first >= 0xC0:
            return first & 0x3F, True
        if first > 0x81:
            self.corrupt(f"unknown length encoding {first:#04x}", self.offset - 1)
        size = 4 if first == 0x80 else 8
        self.need(size)
        value = int.from_bytes(self.data[self.pos : self.pos + size], "big")
        self.pos += size
        return value, False

    def string(self) -> bytes:
        """A whole string: plain, integer (as decimal text, T34) or LZF-compressed."""
        pos = self.pos + 1
        if pos <= len(self.data) and (first := self.data[pos - 1]) < 0x40 and pos + first <= len(self.data):
            self.pos = pos + first
            return self.data[pos : pos + first]
        value, special = self.length_or_special()
        if not special:
            return self.take(value)
        if value <= 2:
            return b"%d" % self.integer(1 << value)
        compressed, size = self._lzf(value)
        start = self.offset
        try:
            return blobs.lzf_expand(self.take(compressed), size)
        except ValueError as error:
            self.corrupt(str(error), start)

    def skip_string(self) -> int | None:
        """Pass over a string. Returns None for a plain one, else the number of its special encoding."""
        value, special = self.length_or_special()
        if not special:
            self.skip(value)
            return None
        if value <= 2:
            self.skip(1 << value)
        else:
            self.skip(self._lzf(value)[0])
        return value

    def skip_strings(self, count: int, *, trailer: int = 0) -> None:
        """Pass over `count` strings, each followed by `trailer` more bytes."""
        while count:
            # Short plain strings within the window: no calls.
            data, pos, margin = self.data, self.pos, len(self.data) - 64 - trailer
            while count and pos < margin and (first := data[pos]) < 0x40:
                pos += 1 + first + trailer
                count -= 1
            self.pos = pos
            if count:
                self.skip_string()
                self.skip(trailer)
                count -= 1

    def blob_count(self, kind: str) -> int:
        """Pass over a string holding a packed encoding. Returns the number of its elements."""
        start = self.offset
        value, special = self.length_or_special()
        try:
            if not special:
                self.expect(value)
                count = blobs.header_count(kind, self.peek(min(value, blobs.HEAD)), value)
                if count != blobs.UNKNOWN:
                    self.skip(value)
                    return count
                return blobs.walk(kind, self.take(value))
            if value <= 2:
                self.corrupt(f"a {kind} is expected, not an integer", start)
            compressed, size = self._lzf(value)
            blobs.lzf_check(compressed, size)
            head = self.peek(min(compressed, 2 * blobs.HEAD + 2))
            count = blobs.header_count(kind, blobs.lzf_head(head, 0, len(head), blobs.HEAD), size)
            if count != blobs.UNKNOWN:
                self.skip(compressed)
                return count
            return blobs.walk(kind, blobs.lzf_expand(self.take(compressed), size))
        except (ValueError, IndexError) as error:
            self.corrupt(str(error), start)

    def _lzf(self, encoding: int) -> tuple[int, int]:
        """Compressed and real size of the LZF string that begins here."""
        if encoding != 3:
            self.corrupt(f"unknown string encoding {encoding}", self.offset - 1)
        compressed, size = self.length(), self.length()
        self.expect(compressed)
        return compressed, size
