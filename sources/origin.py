"""Where the bytes of a dump come from: a file, which can be read again from anywhere, or a Redis, which cannot."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec

from millstream.errors import ConfigError
from millstream.secrets import register_secret
from millstream.settings import Settings
from sources.rdb import ByteSource
from sources.redis import DumpStream, RedisEndpoint

_HEAD = 64 * 1024
_PATH_CHARS = 600


class OriginId(msgspec.Struct, frozen=True):
    """What tells files apart. A difference in between is found by the checksum at the file's end, also on resuming."""

    path: str
    """Of a Redis: redis://host:port."""
    size: int
    """-1 for a Redis."""
    digest: str
    """SHA-256 of the first and the last 64 KiB; empty for a Redis."""

    def same(self, other: OriginId) -> bool:
        """The same content, wherever it lies; of a Redis, the same server."""
        alike = (self.size, self.digest) == (other.size, other.digest)
        return alike and (self.size >= 0 or self.path == other.path)

    def __str__(self) -> str:
        return self.path if self.size < 0 else f"{self.path} ({self.size} bytes, {self.digest[:12]})"


class Origin(Protocol):
    """One dump."""

    id: OriginId
    resumable: bool
    """Reading can go on at a position. If not, every attempt is a run of its own."""
    name: str
    """In front of what a parser has to say."""
    label: str
    """In front of other errors."""
    about: dict[str, Any]
    """For the begin record."""

    @property
    def received(self) -> int:
        """Bytes that have arrived; 0 where none can be late."""

    @property
    def size(self) -> int:
        """Bytes of all, at the end."""

    def open(self, waiting: Callable[[], None]) -> ByteSource:
        """Begin to read, again if need be; `waiting` is called every second. Raises MillstreamError."""

    def stop(self) -> None:
        """End a read that waits in another thread."""


class FileOrigin:
    """An RDB file."""

    resumable = True
    received = 0

    def __init__(self, file: BinaryIO, path: str) -> None:
        """Raises ConfigError for what is no regular file."""
        self._file = file
        self.id = _identify(file, path)
        self.name, self.label = path, f"file {path}"
        self.about = {"kind": "rdb-file", "path": self.id.path, "bytes": self.id.size}

    @property
    def size(self) -> int:
        """Of the file."""
        return self.id.size

    def open(self, waiting: Callable[[], None]) -> ByteSource:
        """It is."""
        return self._file

    def stop(self) -> None:
        """Its reads end by themselves."""


class RedisOrigin:
    """A Redis that takes this process for a replica."""

    resumable = False

    def __init__(self, endpoint: RedisEndpoint, settings: Settings) -> None:
        if endpoint.password:
            register_secret(endpoint.password, endpoint.username)
        self._endpoint, self._settings = endpoint, settings
        self._stream: DumpStream | None = None
        self.id = OriginId(f"redis://{endpoint.address}", -1, "")
        self.name = self.label = f"the dump of {endpoint.address}"
        self.about = {"kind": "redis", "address": endpoint.address}

    @property
    def received(self) -> int:
        """Of the present attempt."""
        return self._stream.received if self._stream else 0

    @property
    def size(self) -> int:
        """Known at the end."""
        return self.received

    def open(self, waiting: Callable[[], None]) -> ByteSource:
        """Become a replica."""
        self.stop()
        settings = self._settings
        stream = self._stream = DumpStream(
            self._endpoint, retry_timeout=settings.redis_retry_timeout, silence=settings.redis_timeout
        )
        stream.open(waiting)
        return stream

    def stop(self) -> None:
        """Leave."""
        if self._stream is not None:
            self._stream.close()


@contextmanager
def origin_of(path: str, redis: RedisEndpoint | None, settings: Settings) -> Iterator[Origin]:
    """The origin of a job; ended behind the block. Raises ConfigError."""
    if redis is not None:
        origin = RedisOrigin(redis, settings)
        try:
            yield origin
        finally:
            origin.stop()
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - only opening it may be the user's mistake
    except OSError as exc:
        raise ConfigError(f"--path {path}: {exc.strerror}") from exc
    with file:
        yield FileOrigin(file, path)


def _identify(file: BinaryIO, path: str) -> OriginId:
    try:
        size = file.seek(0, 2)
        digest = hashlib.sha256()
        for start in (0, max(0, size - _HEAD)):
            file.seek(start)
            digest.update(file.read(_HEAD))
        file.seek(0)
    except OSError as exc:
        raise ConfigError(f"--path {path}: must be a regular file ({exc})") from exc
    return OriginId(str(Path(path).absolute())[-_PATH_CHARS:], size, digest.hexdigest())
