"""The generic stream, which says when its partitions were revoked. `faust -A` this module."""

from __future__ import annotations

import sys
from typing import Any

from tests.chaos.stream_app import app

REVOKED = "chaos: partitions revoked"


@app.on_partitions_revoked.connect
async def _tell(*_: Any, **__: Any) -> None:
    print(REVOKED, file=sys.__stdout__, flush=True)
