"""The services of ours in real containers, by podman: tools/image-check.sh builds the image and runs the demo on it.

As docker-compose.yml says it (read-only, no capabilities, not root, volumes), but in the network of this machine.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from tests.integration.deploy.services import Services

FORWARDED = re.compile(r"(MILLSTREAM|DEMO)_\w+")


class Containers(Services):
    """See Services; `image` is what runs."""

    image = ""

    def command(self, name: str) -> list[str]:
        """`podman run`, which hands on signals and the exit code."""
        service: dict[str, Any] = self._file[name]
        words = ["podman", "run", "--rm", "--name", self._called(name), "--network", "host", "--no-healthcheck"]
        words += ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--security-opt", "no-new-privileges"]
        for volume in service.get("volumes", []):
            source = volume["source"] if volume["type"] == "bind" else self._called(volume["source"])
            words += ["--volume", f"{source}:{volume['target']}" + (":ro" if volume.get("read_only") else "")]
        for key, value in self.environment(name).items():
            if FORWARDED.fullmatch(key):
                words += ["--env", f"{key}={value}"]
        return [*words, self.image, *(service.get("command") or [])]

    def volume(self, name: str) -> Path:
        """Where podman keeps it."""
        ask = ["podman", "volume", "inspect", "--format", "{{.Mountpoint}}", self._called(name)]
        return Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())

    def _check(self, name: str, words: list[str]) -> int:
        command = ["podman", "exec", self._called(name), *words]
        return subprocess.run(command, capture_output=True).returncode

    def _places(self, name: str) -> dict[str, str]:
        return {}

    def _called(self, what: str) -> str:
        return f"{self._home.name}-{what}"
