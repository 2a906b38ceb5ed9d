"""Feeder children that say what is no line of theirs (U8), and manifests that can never be complete."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from millstream.errors import ConfigError
from millstream.settings import Settings
from sources.feed import FeedJob, feed_file
from sources.feeders import LINE_BYTES, FeedError, feed_all

JOB = FeedJob(path="/nowhere", cluster="c", instance="i:1", batch_ts=1, instances=["i:1"])


def _child(path: Path, body: str) -> str:
    path.write_text(f"#!{sys.executable}\nimport sys\nsys.stdin.readline()\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("print('hello')", "b'hello"),
        (f"print('x' * {LINE_BYTES + 10})", "no line of its own"),
        ("print('[]')", "object"),
        ("sys.stdout.buffer.write(bytes([255, 10]))", "no line of its own"),
    ],
)
async def test_a_child_that_prints_something_else_is_told_as_an_error_of_its_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, says: str
) -> None:
    monkeypatch.setattr(sys, "executable", _child(tmp_path / "child", body))
    found = (await feed_all([JOB], 1, lambda *_: None))["i:1"]
    assert isinstance(found, FeedError)
    assert "the feeder of instance 'i:1' wrote to its standard output" in str(found)
    assert says in str(found)


async def test_a_childs_long_error_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # U8: more than asyncio's 64 KiB ended in a ValueError of the stream reader
    line = msgspec.json.encode({"error": "e" * 200_000}).decode()
    (tmp_path / "line").write_text(line)
    body = f"print(open({str(tmp_path / 'line')!r}).read()); sys.exit(1)"
    monkeypatch.setattr(sys, "executable", _child(tmp_path / "child", body))
    found = (await feed_all([JOB], 1, lambda *_: None))["i:1"]
    assert str(found) == "e" * 200_000


def test_a_manifest_that_lists_an_instance_twice_is_refused_before_anything_is_fed() -> None:
    job = msgspec.structs.replace(JOB, instances=["i:1", "i:2", "i:2"])
    with pytest.raises(ConfigError, match=r"lists instance 'i:2' twice.*name each instance once"):
        feed_file(Settings(bootstrap_servers="127.0.0.1:1"), job)
