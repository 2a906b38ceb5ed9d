"""Where a Redis is, and how to get in."""

from __future__ import annotations

import ssl
from typing import Any

import msgspec

from millstream.errors import ConfigError


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """TLS to a server. Paths are absolute: a feeder is another process."""

    ca_file: str = ""
    """PEM of the authorities to trust; empty: the system's."""
    cert_file: str = ""
    key_file: str = ""
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """Blocking: reads the files. Raises ConfigError naming the file that does not fit."""
        given = ", ".join(f for f in (self.ca_file, self.cert_file, self.key_file) if f) or "the system's authorities"
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                # An empty passphrase instead of a question on the terminal.
                context.load_cert_chain(self.cert_file, self.key_file or None, password=lambda: b"")
        except (OSError, ssl.SSLError) as exc:
            raise ConfigError(
                f"TLS files ({given}): {exc}; PEM files are expected, the key without passphrase"
            ) from exc
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class RedisEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A server. Its text never has the password (T42)."""

    host: str
    port: int
    username: str = ""
    password: str = ""
    tls: Tls | None = None

    @property
    def address(self) -> str:
        """host:port, an IPv6 address in brackets."""
        return join(self.host, self.port)

    def at(self, host: str, port: int) -> RedisEndpoint:
        """Another server of the same kind: same credentials, same TLS."""
        return msgspec.structs.replace(self, host=host, port=port)

    def __repr__(self) -> str:
        return f"RedisEndpoint({self.address!r}, username={self.username!r}, tls={self.tls!r})"

    def __rich_repr__(self) -> Any:
        yield self.address


def join(host: str, port: int) -> str:
    """host:port; brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`. Raises ValueError with what is expected."""
    host, colon, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not colon or not host or (":" in host and not bracketed) or any(c in host for c in "/@[] "):
        raise ValueError(f"{text!r} is not host:port (an IPv6 address in brackets: [::1]:6379)")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"{text!r}: the port must be a number from 1 to 65535")
    return host, int(port)
