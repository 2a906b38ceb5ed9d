"""What each process of a tree takes: CPU seconds and peak resident memory, by what it is."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Usage:
    """One process, as last seen."""

    name: str
    cpu: float = 0.0
    rss: int = 0
    """Peak resident bytes (VmHWM)."""


class Tree:
    """The processes below one, itself included; call `look` often enough to see the last of each."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.seen: dict[int, Usage] = {}
        self.rss = 0
        """Resident bytes of all of them, at the last look."""

    def look(self) -> None:
        """Take note of every process of the tree that is alive."""
        todo, self.rss = [self.root], 0
        while todo:
            pid = todo.pop()
            proc = Path(f"/proc/{pid}")
            try:
                fields = (proc / "stat").read_text().rpartition(")")[2].split()
                status = (proc / "status").read_text()
                command = (proc / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
                tasks = list((proc / "task").iterdir())
            except OSError:
                continue  # it ended while we looked
            for task in tasks:
                with contextlib.suppress(OSError):  # a thread that ended while we looked
                    todo += map(int, (task / "children").read_text().split())
            sizes = {
                line[:5]: int(line.split()[1]) for line in status.splitlines() if line.startswith(("VmHWM", "VmRSS"))
            }
            self.rss += sizes.get("VmRSS", 0) * 1024
            usage = self.seen.setdefault(pid, Usage(""))
            usage.name = _name(command) or usage.name
            usage.cpu = (int(fields[11]) + int(fields[12])) / _TICKS
            usage.rss = max(usage.rss, sizes.get("VmHWM", 0) * 1024)


def _name(command: list[str]) -> str:
    """worker, feeder or command line."""
    text = " ".join(command)
    if "streams.cli.child" in text:
        return "worker"
    if "sources." in text or "multiprocessing" in text:
        return "feeder"
    return "command" if "millstream" in text or "dump" in text else Path(command[0]).name
