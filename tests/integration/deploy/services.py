"""docker-compose.yml without containers: each service of ours runs its very command, with its very environment.

What a container would give is put in place of it, and nothing else is changed: hosts become those of the servers that
the test has, volumes and /tmp become directories, published ports become free ones.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from millstream.child import Watchdog, free_port
from tests.support.waiting import wait_until
from tests.unit.deploy import dockerfile

ROOT = dockerfile.ROOT
BIN = Path(sys.executable).parent
PATIENCE = 90.0


def compose() -> dict[str, Any]:
    """The file as `docker compose` itself understands it: merged, interpolated, checked."""
    command = [BIN / "docker-compose", "--project-directory", ROOT, "config", "--format", "json"]
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Services:
    """The services of ours. Use it as a context manager: what it started ends with it, and with the test's process."""

    def __init__(self, home: Path, kafka: str, postgres: str, clickhouse: int, **settings: str) -> None:
        """`clickhouse` is a port; `settings` go to every service, as they stand."""
        self._file = compose()["services"]
        self._home, self._settings = home, settings
        self._hosts = {"kafka:9092": kafka, "@clickhouse:8123": f"@127.0.0.1:{clickhouse}"}
        self._postgres = postgres
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.ports: dict[str, int] = {}

    def __enter__(self) -> Services:
        self._watchdog = Watchdog()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for process in self._running.values():
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
            for name, process in self._running.items():
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise AssertionError(f"{name} did not end at SIGTERM: {self.log(name)}") from None
        finally:
            self._watchdog.kill()

    def run(self, name: str) -> None:
        """Run a service that ends."""
        self.start(name)
        assert self._running[name].wait(PATIENCE) == 0, self.log(name)

    def start(self, name: str) -> None:
        """Start a service; those that it waits for are the caller's to start."""
        (self._home / name).mkdir(parents=True, exist_ok=True)
        with (self._home / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                self.command(name),
                cwd=self._home / name,
                env=os.environ | self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=self._watchdog.group,
            )

    def command(self, name: str) -> list[str]:
        """That of the service, else that of the image."""
        return [self._outside(name, word) for word in self._file[name].get("command") or dockerfile.command()]

    def environment(self, name: str) -> dict[str, str]:
        """That of the image, with that of the service."""
        image = {k: v for k, v in dockerfile.environment().items() if k != "PATH"}
        found = image | self._file[name].get("environment", {})
        found = {key: self._outside(name, value) for key, value in found.items()}
        self.ports.setdefault(name, free_port())
        if "MILLSTREAM_METRICS_PORT" in found:
            found["MILLSTREAM_METRICS_PORT"] = str(self.ports[name])
        return found | self._settings | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(self._home / name),
            "TMPDIR": str(self._home / name),
            "MILLSTREAM_CONFIG": os.devnull,
            "MILLSTREAM_WEB_BIND": "127.0.0.1",
            "MILLSTREAM_WEB_PORT": str(self.ports[name]),
            "MILLSTREAM_WORKER_SLOT": name,
        }  # fmt: skip

    def healthy(self, name: str) -> bool:
        """What the container's health check says."""
        code = self._running[name].poll()
        assert code is None, f"{name} ended with {code}: {self.log(name)}"
        check = self._file[name].get("healthcheck", {}).get("test") or ["CMD", *dockerfile.health_check()]
        shell, words = check[0] == "CMD-SHELL", [self._outside(name, word).replace("$$", "$") for word in check[1:]]
        command = ["/bin/sh", "-c", words[0]] if shell else words
        return self._check(name, command) == 0

    def _check(self, name: str, words: list[str]) -> int:
        return subprocess.run(words, env=os.environ | self.environment(name), capture_output=True).returncode

    def until_healthy(self, *names: str) -> None:
        """Wait for it."""
        for name in names:
            wait_until(lambda name=name: self.healthy(name), PATIENCE, f"{name} to be healthy", every=0.5)

    def get(self, name: str, path: str) -> str:
        """An answer of its web server."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def volume(self, name: str) -> Path:
        """Where a volume lies."""
        return self._home / name

    def log(self, name: str, lines: int = 30) -> str:
        """The end of what it wrote."""
        return "\n".join((self._home / f"{name}.log").read_text("utf-8", "replace").splitlines()[-lines:])

    def _outside(self, name: str, text: str) -> str:
        text = re.sub(r"postgresql://[^@]+@postgres:5432/\w+", self._postgres, text)
        for inside, outside in self._hosts.items():
            text = text.replace(inside, outside)
        places = self._places(name)
        if not places:
            return text
        anyone = "|".join(map(re.escape, sorted(places, key=len, reverse=True)))
        return re.sub(rf"(?<![\w./])({anyone})(?=/|$|\s)", lambda m: places[m[1]], text)

    def _places(self, name: str) -> dict[str, str]:
        """Paths in the container, and where they are here."""
        own = self._home / name
        found = {"/tmp": str(own), "/var/lib/millstream": str(own / "data")}
        for volume in self._file[name].get("volumes", []):
            bind = volume["type"] == "bind"
            found[volume["target"]] = volume["source"] if bind else str(self._home / volume["source"])
        return found
