"""Small disks of our own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A tmpfs in a mount namespace of its own: it ends with the process that holds it, whatever becomes of the test.

    Others reach it through /proc/<pid>/root, workers too.
    """

    def __init__(self, size: str = "1m", inodes: int = 0) -> None:
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self._keeper = subprocess.Popen(
            ["unshare", *user, "--mount", "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        options = f"size={size},mode=0777" + (f",nr_inodes={inodes}" if inodes else "")
        self._do(f"mount --make-rprivate / && mount -t tmpfs -o {options} small /mnt")
        self.path = Path(f"/proc/{self._keeper.pid}/root/mnt")

    def _do(self, command: str) -> None:
        assert self._keeper.stdin
        assert self._keeper.stdout
        self._keeper.stdin.write(f"{command} && echo done || echo failed\n")
        self._keeper.stdin.flush()
        assert self._keeper.stdout.readline() == "done\n", command

    @property
    def free(self) -> int:
        """Bytes."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Until only so many bytes are left."""
        with (self.path / "ballast").open("ab") as file:
            file.write(bytes(max(0, self.free - leave)))

    def empty(self) -> None:
        """Take the ballast away."""
        (self.path / "ballast").unlink()

    def read_only(self, on: bool) -> None:
        """Remount."""
        self._do(f"mount -o remount,{'ro' if on else 'rw'} /mnt")

    def close(self) -> None:
        """End the namespace, and the disk with it."""
        self._keeper.kill()
        self._keeper.wait(10)
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            assert pipe
            pipe.close()


MakeDisk = Callable[..., SmallDisk]


@pytest.fixture
def small_disk() -> Iterator[MakeDisk]:
    """`small_disk("1m")` is an empty disk."""
    made: list[SmallDisk] = []

    def make(size: str = "1m", inodes: int = 0) -> SmallDisk:
        made.append(SmallDisk(size, inodes))
        return made[-1]

    yield make
    for disk in made:
        disk.close()
