"""What can be wrong with a Redis that is to be dumped. Every text names host:port and what to do."""

from __future__ import annotations

from millstream.errors import MillstreamError


class RedisSourceError(MillstreamError):
    """The dump cannot be had from this server."""


class RedisAwayError(RedisSourceError):
    """The server cannot be reached, or broke off before the dump began: worth a few more tries."""


class RedisBusyError(RedisSourceError):
    """The server says that it cannot just now (loading, busy, without its master): worth waiting for."""


class TransferDroppedError(RedisSourceError):
    """The connection broke in the middle of the dump: all of it has to be read anew."""
