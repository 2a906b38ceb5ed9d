"""What the values of settings may be: each function gives the value or raises ValueError that says what is allowed."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from pydantic import AfterValidator, Field, SecretStr

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})")


def split(value: Any) -> Any:
    """A text with commas as a list; a list (in TOML) stays."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def pairs(value: Any) -> Any:
    """`a=b,c=d` as a mapping; a mapping (a table in TOML) stays."""
    if not isinstance(value, str):
        return value
    parts = [part.partition("=") for part in split(value)]
    if bad := [name for name, _, given in parts if not name.strip() or not given.strip()]:
        raise ValueError(f"must be name=value, several of them with commas between; {bad[0]!r} has no value")
    return {name.strip(): given.strip() for name, _, given in parts}


def topics(value: dict[str, str]) -> dict[str, str]:
    """Names that Kafka takes as topics."""
    for topic in value.values():
        if not _NAME.fullmatch(topic) or len(topic) > 249:
            raise ValueError(f"{topic!r} is no topic name: at most 249 letters, digits, '.', '_' and '-'")
    if not value:
        raise ValueError("must name at least one aggregate type and its topic")
    return value


def identifier(value: str) -> str:
    """A name that Postgres takes without quotes."""
    if not re.fullmatch(r"[a-z0-9_]{1,63}", value):
        raise ValueError("must be 1 to 63 lower-case letters, digits and '_'")
    return value


def plain_name(value: str) -> str:
    """A name for ids, files and topics."""
    if value and not _NAME.fullmatch(value):
        raise ValueError("may hold letters, digits, '.', '_' and '-' only")
    return value


def namespace(value: str) -> str:
    """The prefix of topics."""
    if not re.fullmatch(r"([a-z0-9-]{1,64}\.?)?", value):
        raise ValueError("may hold at most 64 lower-case letters, digits and '-', and a dot at the end")
    return value


def not_empty(value: str) -> str:
    """Any text but none."""
    if not value:
        raise ValueError("must not be empty")
    return value


def servers(value: str | None) -> str | None:
    """host:port of each server."""
    for part in (value or "").split(",") if value else ():
        m = _HOST_PORT.fullmatch(part.strip())
        if not m or not 0 < int(m[2]) < 65536:
            raise ValueError("must be host:port, several of them with commas between")
    return value


def modules(value: list[str]) -> list[str]:
    """Dotted names of modules."""
    for module in value:
        if not _MODULE.fullmatch(module):
            raise ValueError(f"{module!r} is not the dotted name of a Python module")
    if not value:
        raise ValueError("must name at least one module")
    return value


def _parts(value: SecretStr, allowed: str) -> SplitResult:
    """A URL taken apart, its port a number or missing. Raises ValueError with what is allowed."""
    try:
        parts = urlsplit(value.get_secret_value())
        _ = parts.port
    except ValueError:  # Its text quotes parts of the URL, which may be parts of the password.
        raise ValueError(f"{allowed}; '/', '?', '#' and '@' in a password are written %2F, %3F, %23, %40") from None
    return parts


def clickhouse(value: SecretStr | None) -> SecretStr | None:
    """The URL rules of facts.md 2.1, and `chdb:///absolute/path?database=d` for the embedded one."""
    if value is None:
        return None
    allowed = "must be http(s)://user:password@host:port?database=d or chdb:///absolute/path?database=d"
    parts = _parts(value, allowed)
    if parts.scheme not in ("http", "https", "chdb"):
        raise ValueError(allowed)
    if parts.scheme == "chdb" and (parts.netloc or not parts.path.strip("/")):
        raise ValueError(f"{allowed}: the path of chdb must be absolute (three slashes)")
    if parts.scheme != "chdb" and not (parts.hostname and parts.port):
        raise ValueError(f"{allowed}: host and port must be given")
    database = parse_qs(parts.query).get("database", [""])[-1]
    if not re.fullmatch(r"[A-Za-z0-9_-]+", database):
        raise ValueError(f"{allowed}: database is required, of letters, digits, '_' and '-'")
    return value


def postgres(value: SecretStr | None) -> SecretStr | None:
    """A URL that asyncpg takes, with a database."""
    if value is None:
        return None
    allowed = "must be postgresql://user@host:port/database, a password behind the user as in user:password@"
    parts = _parts(value, allowed)
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname or not parts.path.strip("/"):
        raise ValueError(allowed)
    return value


def proxy(value: SecretStr | None) -> SecretStr | None:
    """URL of an HTTP proxy."""
    if value is not None:
        parts = urlsplit(value.get_secret_value())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be http(s)://[user:password@]host:port")
    return value


def lower(value: Any) -> Any:
    """A text in lower case."""
    return value.lower() if isinstance(value, str) else value


def upper(value: Any) -> Any:
    """A text in upper case."""
    return value.upper() if isinstance(value, str) else value


Name = Annotated[str, AfterValidator(plain_name)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
