"""Durable steps on files, written once: temporary file, fsync, put in place without replacing, fsync of the directory.

A result stands under its name whole or not at all, whoever is killed when. Nothing here ever replaces or appends.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from millstream.errors import MillstreamError, RetryableSinkError, SinkError

RETRYABLE = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.EIO,  # a retry writes a new file from the start and never trusts pages of the failed one
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
"""What may pass by itself. A full disk, no permission, read-only (T43) need a human: never retried."""


_WHAT_TO_DO = {
    errno.ENOSPC: "free space there, then start the worker again; nothing is published in part",
    errno.EDQUOT: "raise the quota or free space, then start the worker again; nothing is published in part",
    errno.EROFS: "make the file system writable, then start the worker again",
    errno.EACCES: "let the worker's user write there, then start it again",
    errno.EPERM: "let the worker's user write there, then start it again",
}


@contextmanager
def naming(path: Path, instance: str | None = None) -> Iterator[None]:
    """Turn an OSError within into a SinkError (or RetryableSinkError) that names path and instance (RP-61).

    Where a human has to do something it says what, for a full disk with the space that is left (T43).
    """
    try:
        yield
    except OSError as e:
        of = f", instance {instance}" if instance is not None else ""
        reason = os.strerror(e.errno) if e.errno else "I/O error"
        kind: type[MillstreamError] = RetryableSinkError if e.errno in RETRYABLE else SinkError
        space = free_space(path) if e.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        todo = _WHAT_TO_DO.get(e.errno or 0, "")
        raise kind(f"{e.filename or path}{of}: {reason} ({e}){space}{f'. What to do: {todo}' if todo else ''}") from e


def free_space(path: Path) -> str:
    """What is left on the file system of a path, or of the first directory above it that stands, as `; … free`."""
    for place in (path, *path.parents):
        try:
            found = os.statvfs(place)
        except OSError:
            continue
        free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        return f"; {free:,} of {size:,} bytes and {found.f_favail:,} of {found.f_files:,} inodes are free at {place}"
    return ""


class Root:
    """The directory below which a sink writes; it must be the same one as long as the sink is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity: tuple[int, int] | None = None

    def open(self) -> None:
        """Make it, and check that files can be made in it. Raises OSError."""
        ensure_dir(self.path)
        probe(self.path)
        found = self.path.stat()
        self._identity = (found.st_dev, found.st_ino)

    def check(self) -> None:
        """Raise SinkError if it was moved away, unmounted or replaced: another one would split the data."""
        if self._identity is None:
            return
        try:
            found = self.path.stat()
            problem = "" if (found.st_dev, found.st_ino) == self._identity else "was replaced by another directory"
        except FileNotFoundError:
            problem = "is gone"
        if problem:
            raise SinkError(
                f"{self.path} {problem} while the worker was writing below it. What to do: put the directory back (or "
                "mount it again), then start the worker; started without it, it would begin a new, empty one"
            )

    @contextmanager
    def standing(self, path: Path, instance: str | None = None) -> Iterator[None]:
        """`naming`, and whatever fails because the root has gone is told as that."""
        self.check()
        try:
            with naming(path, instance):
                yield
        except MillstreamError:
            self.check()
            raise


def fsync(path: Path) -> None:
    """Make a file's content, or a directory's entries, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dir(path: Path) -> bool:
    """Make one durable directory whose parent must stand. False if it stood already."""
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
        return False
    fsync(path.parent)
    return True


def ensure_dir(path: Path) -> None:
    """Make a directory with every level above it (RP-14, RP-19)."""
    if not path.is_dir():
        if path.parent != path:
            ensure_dir(path.parent)
        make_dir(path)


def unique(directory: Path, stem: str) -> Path:
    """A path for a temporary file that no other process and no earlier try uses."""
    return directory / f".{stem}.{uuid.uuid4().hex}.tmp"


@contextmanager
def retried(tmp: Path) -> Iterator[None]:
    """Remove `tmp` where the work on it will be tried again: a long outage must not fill the disk with copies.

    After other errors it stays for diagnosis (RP-62).
    """
    try:
        yield
    except OSError as e:
        if e.errno in RETRYABLE:
            with suppress(OSError):
                tmp.unlink(missing_ok=True)
        raise


@contextmanager
def durable(tmp: Path) -> Iterator[Callable[[], None]]:
    """Create `tmp` (must not exist) for writing by name; the yielded function fsyncs what was written.

    The descriptor is opened before the first byte, so that its fsync reports every write-back error since.
    """
    fd = os.open(tmp, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        yield lambda: os.fsync(fd)
    finally:
        os.close(fd)


def link_new(tmp: Path, target: Path) -> bool:
    """Put a finished file in place under a second name, durably. False if `target` exists: it is never replaced."""
    try:
        target.hardlink_to(tmp)
    except FileExistsError:
        return False
    except FileNotFoundError:
        if not target.exists():
            raise
        return False  # a rival was done first and has removed our file
    fsync(target.parent)
    return True


def put_new(target: Path, write: Callable[[Path], None], reached: Callable[[str], None] = lambda _step: None) -> bool:
    """Write a whole file and put it in place; False if somebody else's stands there.

    `reached` is told before_write, after_write, after_fsync and after_rename. A retry uses another file (T32).
    """
    tmp = unique(target.parent, target.name)
    reached("before_write")
    with retried(tmp):
        with durable(tmp) as sync:
            write(tmp)
            reached("after_write")
            sync()
        reached("after_fsync")
        new = link_new(tmp, target)
        reached("after_rename")
    tmp.unlink(missing_ok=True)
    return new


def rename_dir_new(source: Path, target: Path) -> None:
    """Rename a directory durably. Raises FileExistsError if the target stands.

    The kernel itself refuses a target that is not empty, so a race can at worst replace an empty directory.
    """
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)
    fsync(target.parent)


def remove_temporary(target: Path) -> None:
    """Remove what failed tries left beside a finished file. Raises OSError."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        path.unlink(missing_ok=True)


def drop_tree(path: Path, trash: Path) -> None:
    """Take a directory away at one stroke (rename into `trash`), then delete it: nobody can write into half of it."""
    grave = trash / f".trash-{uuid.uuid4().hex}"
    with suppress(FileNotFoundError):
        path.rename(grave)
        fsync(path.parent)
    shutil.rmtree(grave, ignore_errors=True)


def sweep(trash: Path) -> None:
    """Delete what a killed `drop_tree` left."""
    for grave in trash.glob(".trash-*"):
        shutil.rmtree(grave, ignore_errors=True)


def probe(directory: Path) -> None:
    """Check that files can be made in a directory. Removes what a killed check left. Raises OSError."""
    with durable(unique(directory, ".probe")):
        pass
    for path in directory.glob("..probe.*.tmp"):
        path.unlink(missing_ok=True)
