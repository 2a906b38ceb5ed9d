"""SQL lives in named files: `-- name: claim` begins a statement, which ends where the next one begins."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from millstream.errors import ConfigError

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


@cache
def load(package: str, file: str) -> dict[str, str]:
    """Name -> statement of one SQL file of a package. Raises ConfigError if a name is used twice."""
    parts = _NAME.split(files(package).joinpath(file).read_text("utf-8"))
    names, texts = parts[1::2], parts[2::2]
    if len(set(names)) != len(names):
        raise ConfigError(f"{package}/{file}: a name is used twice")
    return dict(zip(names, map(str.strip, texts), strict=True))
