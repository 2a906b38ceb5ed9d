"""One text, and one hash, for one content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from schemas.products.text import decimal_text

SCHEMA_VERSION = 1
"""Part of every hash. Raise it when VERSIONED or the normaliser's rules change: the next `millstream etl products
--no-resume` then versions the whole catalogue anew, on purpose and in one run (T68)."""

VERSIONED = ("brand_code", "sku", "name", "price", "image_url", "on_sale", "tags", "attributes")
"""The white-list of PE-61. Colours are in it as the attribute `colors`. `description` is not: a change of it alone is
written to `products`, and is no new version (T68)."""


def stable_json(value: Any) -> str:
    """Keys sorted, no spaces, Decimals as text. Raises TypeError for a float (PE-62)."""
    _check(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=decimal_text)


def data_version(fields: Mapping[str, Any]) -> str:
    """MD5 (32 hex digits) of a normalised product."""
    text = stable_json({"schema_version": SCHEMA_VERSION} | {name: fields[name] for name in VERSIONED})
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _check(value: Any, where: str) -> None:
    if isinstance(value, float):
        raise TypeError(f"{where} is the float {value!r}: give numbers as text or Decimal")
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check(item, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check(item, f"{where}[{number}]")
