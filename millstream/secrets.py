"""Secrets never reach a reader: masked URLs, and a scrubber for everything that is about to be shown (T42)."""

from __future__ import annotations

import base64
import json
import re
import threading
from urllib.parse import quote, quote_plus, unquote, urlsplit

MASK = "***"

_SHORTEST = 4
"""Shorter secrets are not looked for in free text (they would garble it); in URLs they are masked all the same."""

_IN_URL = re.compile(r"(?P<head>\b[a-z][a-z0-9+.\-]*://[^\s/:@?#]*):(?P<password>[^\s/]*)@", re.IGNORECASE)
_IN_QUERY = re.compile(
    r"(?P<head>[?&;](?:password|passwd|pwd|secret|token|access_key|api_key)=)[^&;#\s'\"]+", re.IGNORECASE
)

_lock = threading.Lock()
_known: set[str] = set()
_pattern: re.Pattern[str] | None = None


def mask_url(url: str) -> str:
    """`url` with its password, and any password or token in its query, replaced by `***`."""
    return _IN_QUERY.sub(rf"\g<head>{MASK}", _IN_URL.sub(rf"\g<head>:{MASK}@", url))


def register_secret(value: str, user: str = "") -> None:
    """From now on `scrub` takes `value` out of every text, also as it stands in URLs, JSON and Basic authentication."""
    spellings = {value, quote(value, safe=""), quote_plus(value), unquote(value), repr(value)[1:-1]}
    spellings |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    spellings.add(base64.b64encode(f"{user}:{value}".encode()).decode())
    with _lock:
        _known.update(s for s in spellings if len(s) >= _SHORTEST)
        global _pattern  # noqa: PLW0603
        _pattern = re.compile("|".join(map(re.escape, sorted(_known, key=len, reverse=True)))) if _known else None


def register_url(url: str) -> None:
    """Register the password of `url`, if it holds one. A text that is no URL is left alone."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return
    if parts.password:
        register_secret(parts.password)
        register_secret(unquote(parts.password), unquote(parts.username or ""))
    for name in _IN_QUERY.finditer(url):
        register_secret(name.group()[len(name["head"]) :])


def scrub(text: str) -> str:
    """`text` without any registered secret and without passwords in URLs: safe to log or print."""
    return mask_url(_pattern.sub(MASK, text) if _pattern else text)
