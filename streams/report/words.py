"""How bytes, numbers and times are written in a report."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

from schemas.batch import Batch

_LONG = 160
"""Characters of a key that are shown; the export has more."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = 253_402_300_800_000
"""First millisecond that `datetime` cannot hold."""


def text(key: bytes) -> str:
    r"""A key as text that shows every byte: what is no UTF-8 as `\xNN`, what cannot be seen, or turns the reading
    direction, as `\u{N}`."""
    decoded = key.decode("utf-8", "surrogateescape")
    return "".join(map(_shown, decoded))


def _shown(character: str) -> str:
    code = ord(character)
    if character == "\\":
        return "\\\\"
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80 and not character.isprintable():
        return f"\\x{code:02x}"
    return character if character.isprintable() else f"\\u{{{code:x}}}"


def short(key: bytes, length: int | None = None) -> str:
    """The same, cut in the middle; `length` is that of the whole key if `key` is its beginning only."""
    whole = text(key)
    if length is not None and length > len(key):
        return f"{whole[:_LONG]}… ({length:,} bytes)"
    if len(whole) <= _LONG:
        return whole or "(empty key)"
    return f"{whole[: _LONG - 40]} … {whole[-40:]}"


def in_base64(key: bytes) -> str:
    """For programs."""
    return base64.b64encode(key).decode()


def size(count: int) -> str:
    """Bytes in binary units, three digits."""
    value, unit = float(abs(count)), 0
    while value >= 1023.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    number = f"{value:.0f}" if unit == 0 or value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
    return f"{'−' if count < 0 else ''}{number} {_UNITS[unit]}"


def signed_size(count: int) -> str:
    """The same with a sign."""
    return f"+{size(count)}" if count > 0 else size(count)


def number(count: int) -> str:
    """With commas."""
    return f"{count:,}".replace("-", "−")


def share(part: int, whole: int) -> str:
    """As a percentage."""
    if not whole or not part:
        return "0 %"
    percent = 100 * part / whole
    return "<0.1 %" if percent < 0.05 else f"{percent:.1f} %"


def percent(part: float, whole: float) -> str:
    """A length within a picture."""
    return f"{100 * part / whole if whole else 0:.4g}%"


def when(batch: Batch) -> str:
    """A batch's time in RFC 3339, without zeros that say nothing."""
    return batch.rfc3339[:-1].rstrip("0").rstrip(".") + "Z" if batch.batch_ts % 10**9 else f"{batch.rfc3339[:19]}Z"


def time(ms: int | None) -> str:
    """Milliseconds since 1970 as a time in UTC; beyond year 9999 as they are (T35)."""
    if ms is None:
        return "never"
    if not 0 <= ms < _LAST:
        return f"{ms:,} ms"
    at = _EPOCH + timedelta(milliseconds=ms)
    return f"{at:%Y-%m-%d %H:%M:%S}"
