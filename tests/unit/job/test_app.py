"""`streams.app` is built when it is asked for, and not before."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {f"MILLSTREAM_{k}": v for k, v in environment.items()}
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | own, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("module", ["streams", "streams.engine", "streams.cli", "streams.ledger"])
def test_importing_a_part_builds_no_app(module: str) -> None:
    done = python(f"import {module}, streams, sys; print('app' in vars(streams), 'streams.archive' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_the_app_has_the_agents_of_the_modules_that_the_settings_name() -> None:
    code = "from streams import app; print(*sorted(app.agents))"
    assert python(code).stdout.split() == ["streams.archive.archive", "streams.batches.coordinate"]
    assert python(code, STREAMS="streams.archive").stdout.split() == ["streams.archive.archive"]


def test_the_archive_alone_makes_the_topic_of_facts_as_the_coordinator_does() -> None:
    # U8: it ended at its first fact, because only the coordinator made the topic
    code = "from streams import app; print({t.topic: t.num_partitions for t in app.declarations()}['rdb.batches'])"
    for streams in ("streams.archive", "streams.batches", "streams.archive,streams.batches"):
        done = python(code, STREAMS=streams)
        assert done.stdout.split() == ["4"], done.stderr


def test_a_module_that_is_not_there_is_named_with_the_variable() -> None:
    done = python("from streams import app", STREAMS="streams.nothing")
    assert done.returncode == 1
    assert "MILLSTREAM_STREAMS names 'streams.nothing'" in done.stderr


def test_our_commands_are_under_faust_and_its_own_stay() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "faust", "-A", "streams", "--help"], capture_output=True, text=True, timeout=60
    )
    for command in ("batches", "demo", "dump", "misc", "worker", "agents", "tables", "send"):
        assert f"\n  {command} " in done.stdout
