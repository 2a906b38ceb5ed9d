"""Failpoints: armed by a text, counted in a file, nothing when off."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from millstream.errors import ConfigError
from millstream.failpoints import FailpointError, arm, declare, failpoint


@pytest.fixture(autouse=True)
def _off_again() -> Iterator[None]:
    yield
    arm("")


def test_a_failpoint_that_is_not_armed_does_nothing() -> None:
    arm("other=error")
    failpoint("here")
    arm("")
    failpoint("other")


def test_an_armed_failpoint_raises_what_it_was_told_and_is_counted(tmp_path: Path) -> None:
    arm("a=error, b=enospc, c=eio", log=str(tmp_path / "hits"))
    with pytest.raises(FailpointError, match="a"):
        failpoint("a")
    for name, number in (("b", errno.ENOSPC), ("c", errno.EIO)):
        with pytest.raises(OSError, match=f"failpoint {name}") as raised:
            failpoint(name)
        assert raised.value.errno == number
    hits = [line.split()[1:] for line in (tmp_path / "hits").read_text().splitlines()]
    assert hits == [[str(os.getpid()), *rest] for rest in (["a", "error"], ["b", "enospc"], ["c", "eio"])]


def test_the_same_seed_draws_the_same_hits() -> None:
    def hits(seed: int) -> list[bool]:
        arm("a=error:0.5", seed)
        drawn = []
        for _ in range(64):
            try:
                failpoint("a")
                drawn.append(False)
            except FailpointError:
                drawn.append(True)
        return drawn

    assert hits(1) == hits(1) != hits(2)
    assert 0 < sum(hits(1)) < 64


def test_an_unknown_action_names_the_variable_and_the_actions() -> None:
    with pytest.raises(ConfigError, match=r"MILLSTREAM_FAILPOINTS: 'a=explode': the action must be one of kill, stop"):
        arm("a=explode")


def test_a_name_stands_for_one_place() -> None:
    assert declare("test.place", "here") == declare("test.place", "here")
    with pytest.raises(ValueError, match="declared twice: 'here' and 'there'"):
        declare("test.place", "there")


def test_kill_leaves_no_time_to_clean_up(tmp_path: Path) -> None:
    code = "import atexit; from millstream.failpoints import failpoint; atexit.register(print, 'bye'); failpoint('x')"
    environment = os.environ | {"MILLSTREAM_FAILPOINTS": "x=kill", "MILLSTREAM_FAILPOINT_LOG": str(tmp_path / "hits")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
    assert (tmp_path / "hits").read_text().split()[2:] == ["x", "kill"]
