"""Where the ClickHouse sink writes, read from one URL. Its password is masked in every text (T42)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from millstream.errors import ConfigError
from millstream.secrets import MASK, mask_url, register_url

DATABASE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
SEND_TIMEOUT_S = 10.0
"""How long one statement may take before its outcome counts as unknown (facts 2.1: send timeout 10 s)."""
SLOW_TIMEOUT_S = 600.0
"""The same for counting a whole instance, and for deleting the rows of voided runs."""
BATCH_TTL_DAYS = 3
"""TTL of the tables we create (facts 2.1). What counts afterwards is the TTL the server has."""

_ALLOWED = "http(s)://user:password@host:port?database=name, or chdb:///absolute/path?database=name"
_USERINFO = re.compile(r"(://[^:@/?#]*):.*@", re.DOTALL)


def _shown(url: str) -> str:
    """A refused URL with its password masked, also one whose `/` or `#` in the password makes it no URL at all."""
    return mask_url(_USERINFO.sub(rf"\1:{MASK}@", url))


@dataclass(frozen=True, slots=True, repr=False)
class ClickHouseConfig:
    """A server (`http`, `https`) or the embedded engine (`chdb`), and what may be done there."""

    scheme: str
    database: str
    host: str = ""
    port: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    path: Path | None = None
    """Directory of the embedded engine; None for a server."""
    auto_create_tables: bool = False
    proxy_url: str | None = field(default=None, repr=False)
    send_timeout: float = SEND_TIMEOUT_S
    """Seconds."""
    batch_ttl_days: int = BATCH_TTL_DAYS

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        auto_create_tables: bool = False,
        proxy_url: str | None = None,
        send_timeout: float = SEND_TIMEOUT_S,
        batch_ttl_days: int = BATCH_TTL_DAYS,
    ) -> ClickHouseConfig:
        """Read a URL (facts 2.1). Raises ConfigError that names what is wrong and what is allowed, password masked."""
        for secret in filter(None, (url, proxy_url)):
            register_url(secret)
        problem, parts, port = _split(url)
        if parts is None:
            raise _refused(url, problem)
        database = _database(url, parts)
        if proxy_url is not None:
            _check_proxy(proxy_url, parts.scheme)
        path = _embedded_path(url, parts) if parts.scheme == "chdb" else None
        if path is None and not parts.hostname:
            raise _refused(url, "it names no host")
        if path is None and not port:
            raise _refused(url, "it names no port; a port must be given, such as :8123 (http) or :8443 (https)")
        if path is None and parts.path not in ("", "/"):
            raise _refused(url, "it has a path; the database goes into ?database=")
        return cls(
            scheme=parts.scheme,
            database=database,
            host=parts.hostname or "",
            port=port,
            username=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            path=path,
            auto_create_tables=auto_create_tables,
            proxy_url=proxy_url,
            send_timeout=send_timeout,
            batch_ttl_days=batch_ttl_days,
        )

    @property
    def embedded(self) -> bool:
        """Whether the engine runs in this process (chdb)."""
        return self.path is not None

    @property
    def url(self) -> str:
        """The URL as it may be shown: `user:***@`."""
        if self.path is not None:
            return f"chdb://{quote(str(self.path))}?database={self.database}"
        user = (
            f"{quote(self.username)}:{MASK}@" if self.password else f"{quote(self.username)}@" if self.username else ""
        )
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{user}{host}:{self.port}?database={self.database}"

    def __repr__(self) -> str:
        return f"ClickHouseConfig({self.url!r})"

    __str__ = __repr__


def _refused(url: str, problem: str) -> ConfigError:
    return ConfigError(f"ClickHouse URL {_shown(url)!r}: {problem}. Allowed: {_ALLOWED}")


def _split(url: str) -> tuple[str, SplitResult | None, int]:
    """Split a URL. Errors of the parser quote pieces of a password, so none of their text or chain is passed on."""
    problem = "it cannot be read; percent-encode special characters of user and password"
    try:
        parts = urlsplit(url)
        port = parts.port or 0
    except ValueError:
        return problem, None, 0
    if parts.scheme not in ("http", "https", "chdb"):
        return "the scheme must be http, https or chdb", None, 0
    if parts.fragment or "#" in url:
        return problem, None, 0
    return "", parts, port


def _database(url: str, parts: SplitResult) -> str:
    arguments = parse_qsl(parts.query, keep_blank_values=True)
    unknown = sorted({name for name, _ in arguments} - {"database"})
    if unknown:
        raise _refused(url, f"unknown argument {', '.join(unknown)}; only database is known")
    names = [value for _, value in arguments]
    if len(names) != 1 or not names[0]:
        raise _refused(url, "?database=<name> is required, once")
    if not DATABASE.fullmatch(names[0]):
        raise _refused(url, f"database {names[0]!r} may hold only the characters A-Z a-z 0-9 _ and -")
    return names[0]


def _embedded_path(url: str, parts: SplitResult) -> Path:
    path = Path(unquote(parts.path))
    if parts.netloc or not path.is_absolute() or path == Path("/"):
        raise _refused(url, "chdb needs an absolute path and no host: three slashes, such as chdb:///var/lib/analytics")
    if set(str(path)) & set("?\0"):
        raise _refused(url, "the path of chdb may not hold '?' or NUL")
    return path


def _check_proxy(proxy_url: str, scheme: str) -> None:
    ok = scheme != "chdb"
    try:
        parts = urlsplit(proxy_url)
        ok = ok and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port is not None
    except ValueError:
        ok = False
    if not ok:
        raise ConfigError(
            f"ClickHouse proxy URL {_shown(proxy_url)!r}: allowed is http(s)://host:port, and only for"
            " http and https servers"
        )
