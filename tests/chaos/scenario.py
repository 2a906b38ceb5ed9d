"""What every application under attack has: its workers, its group, an end that must come, and a verdict."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from tests.chaos.check import Verdict, bad
from tests.chaos.fleet import PATIENCE, Fleet
from tests.chaos.forks import ROOT
from tests.chaos.group import Group
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.waiting import wait_until


def statement(server: ClickHouseServer, sql: str) -> None:
    """Run it."""
    url = server.url("default").partition("?")[0]
    urllib.request.urlopen(urllib.request.Request(f"{url}/", data=sql.encode()), timeout=60).close()


def database(server: ClickHouseServer, name: str, *statements: str) -> str:
    """Make a database; returns the URL for the sink."""
    for sql in ("CREATE DATABASE {db}", *statements):
        statement(server, sql.replace("{db}", f"`{name}`"))
    return server.url(name)


class Scenario(ABC):
    """One application, fed and attacked."""

    fleet: Fleet
    group: Group
    kinds: tuple[str, ...]
    """The kinds of output that it has."""

    @abstractmethod
    def unfinished(self) -> str:
        """Empty once everything that went in has come out; else what is missing."""

    @abstractmethod
    def check_arguments(self) -> list[object]:
        """Of `tests.chaos.check`."""

    @abstractmethod
    def tick(self) -> None:
        """Called often while it is under attack: keep its input coming."""

    @abstractmethod
    def finish_input(self) -> None:
        """No more input; everything given so far is in the log afterwards."""

    def drain(self, timeout: float = PATIENCE * 1.5) -> None:
        """Until everything has come out. Dead workers are started again, nothing armed."""
        left = ""

        def look() -> bool:
            nonlocal left
            for slot, worker in list(self.fleet.workers.items()):
                if worker.code is not None:
                    self.fleet.spawn(slot)
            left = self.unfinished()
            return not left

        try:
            wait_until(look, timeout, "everything to come out", every=0.3)
        except AssertionError as exc:
            raise AssertionError(f"{exc} ({left}; seed {self.fleet.seed}); {self.fleet.failures()}") from exc

    def verdict(self, *more: str) -> dict[str, Verdict]:
        """What the checker says, a program of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.chaos.check", *map(str, self.check_arguments()), *more],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout, done.stderr
        found: dict[str, Verdict] = json.loads(done.stdout)
        print(f"chaos: {self.group.name}: {done.stdout.strip()}", flush=True)
        assert (done.returncode == 0) == (bad(found) == 0)
        return found

    def assert_exact(self) -> dict[str, Verdict]:
        """AssertionError with the seed if anything is missing, doubled or wrong."""
        found = self.verdict()
        assert bad(found) == 0, f"seed {self.fleet.seed}, logs {self.fleet.home}: {found}"
        return found

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """Nothing of it runs any more; its files and topics stay."""
        self.fleet.kill()
        self.group.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
        if error is not None:
            print(f"chaos: FAILED with seed {self.fleet.seed}; {self.fleet.failures()}", flush=True)
