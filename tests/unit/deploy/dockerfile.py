"""The Dockerfile, instruction by instruction."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = ROOT / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments), continued lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text("utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def last_stage() -> list[tuple[str, str]]:
    """The instructions that make the image."""
    found = instructions()
    return found[max(n for n, (name, _) in enumerate(found) if name == "FROM") :]


def environment() -> dict[str, str]:
    """ENV of the image."""
    words = [word for name, rest in last_stage() if name == "ENV" for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def command() -> list[str]:
    """CMD of the image."""
    (found,) = (rest for name, rest in last_stage() if name == "CMD")
    return [str(word) for word in json.loads(found)]


def health_check() -> list[str]:
    """What HEALTHCHECK runs."""
    (found,) = (rest for name, rest in last_stage() if name == "HEALTHCHECK")
    return [str(word) for word in json.loads(found[found.index("[") :])]
