"""One live worker per slot on a host: two would fence one another for ever and share one data directory (T18)."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from millstream.errors import ConfigError


class SlotLock:
    """Holds a lock file in the worker's data directory until released or the process ends."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "worker.lock"
        self._file = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            self._file.close()
            raise ConfigError(
                f"data directory {directory} is in use by another worker (process {owner}). Give each worker on this "
                "host its own MILLSTREAM_WORKER_SLOT."
            ) from exc
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let another worker have the slot."""
        self._file.close()
