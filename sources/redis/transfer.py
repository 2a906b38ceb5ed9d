"""Cuts the dump out of what a master sends after `+FULLRESYNC`. No I/O.

    \\n…             keep-alives while the dump is prepared
    $<length>\\r\\n   and so many bytes: the master wrote a file first
    $EOF:<40>\\r\\n   and bytes until the same 40 come again: it sends while it forks ("diskless")

What follows (the stream of commands) is nobody's business here.
"""

from __future__ import annotations

import re

_MARK = 40
_LONGEST_HEADER = 1024
_HEADER = re.compile(rb"\$(?:EOF:(?P<mark>.{40})|(?P<size>[0-9]{1,19}))", re.DOTALL)


class NotATransferError(ValueError):
    """The master sent something else. The text is what it sent, its first argument too."""


class Transfer:
    """`feed` what came off the wire, get bytes of the dump."""

    def __init__(self) -> None:
        self.size: int | None = None
        """Bytes of the dump, where the master tells."""
        self.started = False
        """The header is through."""
        self.done = False
        """The dump is complete."""
        self.received = 0
        """Bytes of the dump that were given out."""
        self._mark = b""
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """The bytes of the dump in it, maybe none. Raises NotATransferError."""
        if self.done:
            return b""
        if not self.started:
            data = self._header(data)
            if not self.started:
                return b""
        payload = self._until_mark(data) if self._mark else self._counted(data)
        self.received += len(payload)
        return payload

    def _header(self, data: bytes) -> bytes:
        """Returns what stands behind the header, once that is there."""
        data = (self._held + data).lstrip(b"\r\n")
        diskless = data.startswith(b"$EOF:")
        # Forty arbitrary bytes may well hold a line end.
        end = data.find(b"\n", 5 + _MARK if diskless else 0)
        if end < 0:
            if len(data) > (5 + _MARK + 1 if diskless else _LONGEST_HEADER) or data[:1] not in (b"", b"$", b"-"):
                raise NotATransferError(data[:80].decode("utf-8", "backslashreplace"))
            self._held = data
            return b""
        line, self._held = data[:end].removesuffix(b"\r"), b""
        found = _HEADER.fullmatch(line)
        if found is None:
            raise NotATransferError(line[:300].decode("utf-8", "backslashreplace"))
        self.started = True
        if found["mark"] is not None:
            self._mark = found["mark"]
        else:
            self.size = int(found["size"])
        return data[end + 1 :]

    def _counted(self, data: bytes) -> bytes:
        assert self.size is not None
        left = self.size - self.received
        self.done = len(data) >= left
        return data[:left] if len(data) > left else data

    def _until_mark(self, data: bytes) -> bytes:
        data = self._held + data
        found = data.find(self._mark)
        if found >= 0:
            self.done, self._held = True, b""
            return data[:found]
        # The last 39 bytes may be the beginning of the mark.
        cut = max(0, len(data) - _MARK + 1)
        self._held = data[cut:]
        return data[:cut]
