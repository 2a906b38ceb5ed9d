"""Java, Maven and the broker's jars: checked, and fetched once per user and version of pom.xml."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from millstream.errors import BrokerError

HERE = Path(__file__).parent
OLDEST_JAVA = 17

_OR_ELSE = "Or set MILLSTREAM_BOOTSTRAP_SERVERS=host:port to use a Kafka of yours."
_INSTALL_JAVA = f"Install it: apt-get install openjdk-17-jre-headless, or brew install openjdk@17. {_OR_ELSE}"
_INSTALL_MAVEN = f"Install it: apt-get install maven, or brew install maven. {_OR_ELSE}"


def java() -> str:
    """The Java to start: that of JAVA_HOME, else of the PATH. Raises BrokerError that says what to install."""
    home = os.environ.get("JAVA_HOME")
    command = str(Path(home, "bin", "java")) if home else "java"
    needed = f"the embedded Kafka broker needs Java {OLDEST_JAVA} or newer"
    try:
        said = subprocess.run([command, "-version"], capture_output=True, text=True, check=True, timeout=60).stderr
    except FileNotFoundError:
        raise BrokerError(f"{needed}, and {command!r} was not found. {_INSTALL_JAVA}") from None
    except (OSError, subprocess.SubprocessError) as e:
        raise BrokerError(f"{needed}, and '{command} -version' failed: {e}. {_INSTALL_JAVA}") from e
    m = re.search(r'version "(\d+)', said)
    if not m or int(m[1]) < OLDEST_JAVA:
        found = said.strip().splitlines()[0] if said.strip() else "no version"
        raise BrokerError(f"{needed}, and {command!r} is {found}. {_INSTALL_JAVA}")
    return command


def cache_dir() -> Path:
    """Where the jars of this pom.xml are kept: one directory per user, so that clones and test runs share them."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = hashlib.sha256((HERE / "pom.xml").read_bytes()).hexdigest()[:12]
    return Path(base) / "millstream" / f"kafka-{key}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with its holder."""
    with path.open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def class_path() -> str:
    """Java class path of the broker. Maven fetches the jars if they are not in the cache. Raises BrokerError."""
    target = cache_dir() / "libs"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / "lock"):
            if not target.is_dir():
                _fetch(target)
    except OSError as e:
        raise BrokerError(f"the broker's jars cannot be kept in {target.parent}: {e}. Set XDG_CACHE_HOME.") from e
    return os.pathsep.join(sorted(map(str, target.glob("*.jar"))))


def _fetch(target: Path) -> None:
    """Copy the jars beside `target` first, so that `target` is whole or absent."""
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerError(f"fetching the Kafka broker's jars needs Maven, and 'mvn' was not found. {_INSTALL_MAVEN}")
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / "libs"
        command = [maven, "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"]
        command += [f"-DoutputDirectory={made}", "-DincludeScope=runtime"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not any(made.glob("kafka_*.jar")):
            end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
            raise BrokerError(f"Maven could not fetch the Kafka broker's jars (is Maven Central reachable?):\n{end}")
        made.rename(target)
