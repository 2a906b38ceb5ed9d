"""Agents on the engine, and `app`: what `faust -A streams worker` runs.

`app` is built when it is first asked for: from the settings, with every module that they name (`MILLSTREAM_STREAMS`).
Such a module does `from streams import app` and declares agents on it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Before pyarrow is first imported: memory that Arrow and Python free is then held back once (streams.engine.memory).
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

if TYPE_CHECKING:
    from streams.engine.app import App

    app: App


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from millstream.errors import MillstreamError
    from streams.cli.errors import shown

    try:
        return _build()
    except MillstreamError as exc:
        globals().pop("app", None)
        raise shown(exc) from exc


def _build() -> App:
    from faust.cli.faust import cli as faust_cli

    from millstream.errors import ConfigError
    from millstream.settings import get_settings
    from streams.cli import register
    from streams.engine.app import App

    settings = get_settings()
    built = globals()["app"] = App(settings)  # here before the modules ask for it
    register(faust_cli)
    for module in settings.streams:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as exc:
            if exc.name is None or not f"{module}.".startswith(f"{exc.name}."):
                raise  # something that the module itself imports
            raise ConfigError(f"MILLSTREAM_STREAMS names {module!r}, and there is no module {exc.name!r}") from exc
    return built
