"""Text as it is compared and stored: NFC, trimmed, nothing that Postgres cannot hold (T69)."""

from __future__ import annotations

import unicodedata
from decimal import Decimal
from typing import Any

PLACEHOLDERS = frozenset({"", "无", "不适用", "空", "--"})
"""What people write where nothing is (PE-67)."""
_PLAIN_DIGITS = 60
"""Numbers with more digits than this stay in scientific notation: 1e999999 is seven bytes, not a megabyte."""


def clean(text: str) -> str:
    """NFC, trimmed; without NUL, with U+FFFD for lone surrogates."""
    text = text.replace("\0", "")
    if not text.isascii():
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        text = unicodedata.normalize("NFC", text)
    return text.strip()


def decimal_text(number: Any) -> str:
    """One spelling for one number: 398, 398.0 and 398.00 are `398` (T67). Raises TypeError for what is no Decimal."""
    if not isinstance(number, Decimal):
        raise TypeError(f"{type(number).__name__} {number!r} has no stable text")
    if not number.is_finite():
        return str(number)
    if not number:
        return "0"
    number = Decimal((number.as_tuple().sign, *_shortest(number)))
    return format(number, "f") if abs(number.adjusted()) < _PLAIN_DIGITS else str(number)


def _shortest(number: Decimal) -> tuple[tuple[int, ...], int]:
    """Digits and exponent without zeros at the end. Not Decimal.normalize: that rounds to the context's digits."""
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)  # of a finite number
    end = len(digits)
    while end > 1 and digits[end - 1] == 0:
        end -= 1
    return digits[:end], exponent + len(digits) - end


def scalar(value: Any) -> str:
    """An item as text: `true`, `false`, numbers in their one spelling, text cleaned. Raises TypeError otherwise."""
    if isinstance(value, bool):
        return "true" if value else "false"  # not 1, not 0
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, int):
        return decimal_text(Decimal(value))
    return decimal_text(value)


def texts(value: Any, depth: int = 32) -> Any:
    """Lists and objects with every item as text. Raises TypeError for a float, ValueError for more levels."""
    if value is None:
        return None
    if not isinstance(value, dict | list):
        return scalar(value)
    if not depth:
        raise ValueError("nested too deep")
    if isinstance(value, list):
        return [texts(item, depth - 1) for item in value]
    return {clean(str(name)): texts(value[name], depth - 1) for name in sorted(value, key=str)}
