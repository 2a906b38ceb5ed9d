"""The sinks of dump batches, one group for the archive and the coordinator of a worker."""

from __future__ import annotations

from sinks.factory import create_output, require_output
from streams import app

output = app.sinks(*create_output(app.settings))


async def _check() -> None:
    require_output(output.sinks)


app.before_start.append(_check)
