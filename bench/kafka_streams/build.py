"""The Kafka Streams contender, built once per user and version of this directory: Maven's jars and one class."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.runner import ContenderError
from millstream.broker.jars import java

HERE = Path(__file__).parent
_SOURCES = ("pom.xml", "Count.java")


def command() -> list[str]:
    """What starts it. Raises ContenderError that says what is missing."""
    key = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in _SOURCES)).hexdigest()[:12]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millstream"
    target = base / f"bench-kafka-streams-{key}"
    if not target.is_dir():
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=base) as scratch:
            _build(Path(scratch) / "built")
            (Path(scratch) / "built").rename(target)
    # A heap of 1 GiB, the collector a server of this size takes by itself; slf4j-simple prints warnings and errors.
    options = ["-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
    return [java(), *options, "-cp", f"{target}/*{os.pathsep}{target}", "Count"]


def _build(target: Path) -> None:
    for tool in ("mvn", "javac"):
        if shutil.which(tool) is None:
            raise ContenderError(f"Kafka Streams needs {tool}: apt-get install maven openjdk-17-jdk-headless")
    copy = ["mvn", "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies", "-DincludeScope=runtime"]
    _run([*copy, f"-DoutputDirectory={target}"])
    _run(["javac", "-cp", f"{target}/*", "-d", str(target), str(HERE / "Count.java")])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise ContenderError(f"Kafka Streams could not be built: {' '.join(command[:3])} …:\n{end}")
