"""What a disk may hold after power is lost: the file operations of a program, recorded, and cut at every point.

The recorder hooks the system calls of `os` that change names or make things durable. What a call did is not read from
its arguments: it is the difference of the directory tree before and after it. Between two calls only new files and
other contents may appear (pyarrow opens and writes files by itself), and are recorded as such; any other difference
is an operation that was not seen, and an error.

What a cut may leave (POSIX, and stricter than ext4, where any fsync commits all names before it):

- content of a file: as it was at its last fsync; or more, as far as it was written, in part, or as zeros;
- an entry of a directory: as at the directory's last fsync; any later operation may be lost or be there, each by
  itself. A rename is one operation, as on every journaling file system.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Entry = tuple[int, str]
"""Inode of a directory, and a name in it."""
Names = dict[Entry, int]
EVERYTHING = -1
"""In place of an inode: all that there is was made durable."""

NAMING = ("open", "link", "rename", "replace", "mkdir", "unlink", "remove", "rmdir", "symlink", "truncate")
"""Functions of `os` that may change names. pathlib and shutil call them by these names."""


class UnseenOperationError(AssertionError):
    """The tree has changed in a way that no recorded call explains."""


@dataclass(frozen=True)
class Event:
    """One step: names that went and came, contents that changed, or what an fsync made durable."""

    label: str
    acknowledged: int
    removed: Names = field(default_factory=dict)
    added: Names = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    synced: int | None = None


class Recorder:
    """Everything that happens below `root` while `recording` is entered; what stands there before it is durable.

    `acknowledged` is asked at each event.
    """

    def __init__(self, root: Path, acknowledged: Callable[[], int]) -> None:
        self.root, self.events = root, list[Event]()
        self._acknowledged, self._lock = acknowledged, threading.RLock()
        self._real = {name: getattr(os, name) for name in (*NAMING, "fsync", "fdatasync")}
        self._held: dict[int, int] = {}
        """Inode -> a descriptor that keeps it, so that its number is not given to another file."""
        self.directories: set[int] = set()
        self._names: Names = {}
        self._contents: dict[int, bytes] = {}
        self.root_inode = self._hold(str(root), os.stat(root))  # noqa: PTH116

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Hook the calls of this process, of all its threads."""
        self._names, self._contents = names, contents = self._look("the start")
        self._add(Event("the start", self._acknowledged(), added=names, contents=contents, synced=EVERYTHING))
        for name in NAMING:
            setattr(os, name, self._naming(name))
        for name in ("fsync", "fdatasync"):
            setattr(os, name, self._syncing(name))
        try:
            yield
            with self._lock:
                self._between("end")
        finally:
            for name, real in self._real.items():
                setattr(os, name, real)

    def close(self) -> None:
        """Let the files go."""
        for fd in self._held.values():
            os.close(fd)

    # ------------------------------------------------------------------ hooks
    def _naming(self, name: str) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            with self._lock:
                self._between(name)
                try:
                    return self._real[name](*arguments, **keywords)
                finally:
                    self._names_changed(f"{name} {' '.join(map(str, arguments[:2]))}")

        return call

    def _syncing(self, name: str) -> Any:
        def call(fd: int) -> None:
            with self._lock:
                self._between(name)
                self._real[name](fd)
                inode = os.fstat(fd).st_ino
                if inode in self._held:
                    path = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
                    self._add(Event(f"fsync {path}", self._acknowledged(), synced=inode))

        return call

    def _between(self, before: str) -> None:
        names, contents = self._look(before)
        gone = self._names.items() - names.items()
        new = dict(names.items() - self._names.items())
        if gone or any(inode in self.directories for inode in new.values()):
            raise UnseenOperationError(f"before {before}: {sorted(gone)} went and {sorted(new.items())} came, unseen")
        changed = {i: c for i, c in contents.items() if self._contents.get(i, b"") != c}
        self._names, self._contents = names, contents
        for entry, inode in sorted(new.items()):
            self._add(Event(f"create {entry[1]}", self._acknowledged(), added={entry: inode}))
        if changed:
            self._add(Event(f"write {len(changed)} files", self._acknowledged(), contents=changed))

    def _names_changed(self, label: str) -> None:
        names, contents = self._look(label)
        removed = dict(self._names.items() - names.items())
        added = dict(names.items() - self._names.items())
        changed = {i: c for i, c in contents.items() if self._contents.get(i, b"") != c}
        self._names, self._contents = names, contents
        if removed or added or changed:
            self._add(Event(label, self._acknowledged(), removed, added, changed))

    def _add(self, event: Event) -> None:
        self.events.append(event)

    # ------------------------------------------------------------------ the tree as it is
    def _look(self, why: str) -> tuple[Names, dict[int, bytes]]:
        names: Names = {}
        todo = [(self.root_inode, str(self.root))]
        while todo:
            parent, path = todo.pop()
            for entry in os.scandir(path):
                status = entry.stat(follow_symlinks=False)
                inode = self._hold(entry.path, status)
                names[parent, entry.name] = inode
                if inode in self.directories:
                    todo.append((inode, entry.path))
                elif not stat.S_ISREG(status.st_mode):
                    raise UnseenOperationError(f"{why}: {entry.path} is neither file nor directory")
        files = [i for i in self._held if i not in self.directories]
        return names, {inode: _read(self._held[inode]) for inode in files}

    def _hold(self, path: str, status: os.stat_result) -> int:
        inode = status.st_ino
        if inode not in self._held:
            self._held[inode] = self._real["open"](path, os.O_RDONLY)
            if stat.S_ISDIR(status.st_mode):
                self.directories.add(inode)
        return inode


def _read(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


@dataclass
class _Operation:
    removed: Names
    added: Names
    durable: bool = False

    def touches(self, directory: int) -> bool:
        return any(parent == directory for parent, _ in (*self.removed, *self.added))


@dataclass(frozen=True)
class State:
    """A tree that a crash may leave."""

    cut: int
    """Events that had happened."""
    variant: str
    acknowledged: int
    after: str
    """The last event."""
    files: tuple[tuple[str, int, bytes], ...]
    """Path, inode (several paths may share one), content."""
    directories: tuple[str, ...]

    @property
    def digest(self) -> bytes:
        """Equal for trees that are equal, with the same acknowledged steps."""
        inodes = {inode: n for n, inode in enumerate(dict.fromkeys(i for _, i, _ in self.files))}
        what = [self.acknowledged, self.directories, [(p, inodes[i], c) for p, i, c in self.files]]
        return hashlib.sha256(repr(what).encode()).digest()

    def build(self, root: Path) -> None:
        """Make the tree in an empty directory that does not exist yet."""
        root.mkdir(parents=True)
        for path in self.directories:
            (root / path).mkdir()
        made: dict[int, Path] = {}
        for path, inode, content in self.files:
            if inode in made:
                (root / path).hardlink_to(made[inode])
            else:
                made[inode] = root / path
                made[inode].write_bytes(content)

    def __str__(self) -> str:
        return f"cut {self.cut}, after {self.after!r}, {self.variant}, {self.acknowledged} steps acknowledged"


Ignores = Callable[[Event], bool]


def states(recorder: Recorder, *, thorough: bool, ignores: Ignores = lambda _event: False) -> Iterator[State]:
    """Every tree that a crash may leave, each once. `ignores`: fsyncs that count as if the program had not done them.

    Not `thorough`: names and contents that are not durable are lost or there all together.
    """
    seen: set[bytes] = set()
    operations: list[_Operation] = []
    written: dict[int, bytes] = {}
    durable: dict[int, bytes] = {}
    for cut, event in enumerate(recorder.events):
        written |= event.contents
        if event.removed or event.added or event.synced == EVERYTHING:
            operations.append(_Operation(event.removed, event.added))
        if event.synced == EVERYTHING:
            durable |= event.contents
            operations[-1].durable = True
        elif event.synced is not None and not ignores(event):
            if event.synced in recorder.directories:
                for operation in operations:
                    operation.durable |= operation.touches(event.synced)
            else:
                durable[event.synced] = written.get(event.synced, b"")
        pending = [n for n, operation in enumerate(operations) if not operation.durable]
        for names_variant, kept in _choices(pending, thorough):
            names = _apply(operations, kept)
            for data_variant, contents in _contents(written, durable, thorough):
                files, directories = _walk(recorder, names, contents)
                variant = f"names: {names_variant}, data: {data_variant}"
                state = State(cut, variant, event.acknowledged, event.label, files, directories)
                if state.digest not in seen:
                    seen.add(state.digest)
                    yield state


def _choices(pending: list[int], thorough: bool) -> Iterator[tuple[str, set[int]]]:
    yield "all there", set(pending)
    yield "un-synced ones lost", set()
    if not thorough:
        return
    for n, operation in enumerate(pending):
        yield f"un-synced ones up to {n}", set(pending[: n + 1])
        yield f"un-synced ones but {n}", set(pending) - {operation}
        yield f"of un-synced ones only {n}", {operation}


def _contents(
    written: dict[int, bytes], durable: dict[int, bytes], thorough: bool
) -> Iterator[tuple[str, dict[int, bytes]]]:
    dirty = [i for i, content in written.items() if durable.get(i, b"") != content]
    yield "all there", written
    if not dirty:
        return
    yield "un-synced lost", {i: durable.get(i, b"") for i in written}
    if thorough:
        yield "half of the un-synced", written | {i: written[i][: len(written[i]) // 2] for i in dirty}
        yield "un-synced as zeros", written | {i: bytes(len(written[i])) for i in dirty}


def _apply(operations: Iterable[_Operation], kept: set[int]) -> Names:
    names: Names = {}
    for n, operation in enumerate(operations):
        if operation.durable or n in kept:
            for entry, inode in operation.removed.items():
                if names.get(entry) == inode:
                    del names[entry]
            names |= operation.added
    return names


def _walk(
    recorder: Recorder, names: Names, contents: dict[int, bytes]
) -> tuple[tuple[tuple[str, int, bytes], ...], tuple[str, ...]]:
    below: dict[int, list[tuple[str, int]]] = {}
    for (parent, name), inode in sorted(names.items()):
        below.setdefault(parent, []).append((name, inode))
    files, directories = [], []
    todo = [(recorder.root_inode, "")]
    while todo:
        parent, path = todo.pop()
        for name, inode in below.get(parent, []):
            at = f"{path}{name}"
            if inode in recorder.directories:
                directories.append(at)
                todo.append((inode, f"{at}/"))
            else:
                files.append((at, inode, contents.get(inode, b"")))
    return tuple(files), tuple(directories)
