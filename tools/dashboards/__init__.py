"""Grafana dashboards, generated from the metric declarations: `make dashboards`."""

from __future__ import annotations

import json
from pathlib import Path

from tools.dashboards import archive, changefeeds, engine

DASHBOARDS = (engine.DASHBOARD, archive.DASHBOARD, changefeeds.DASHBOARD)
DIRECTORY = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards"


def files() -> dict[Path, str]:
    """What belongs into the directory."""
    return {
        DIRECTORY / f"{d.uid.removeprefix('millstream-')}.json": json.dumps(d.json(), indent=1, sort_keys=True) + "\n"
        for d in DASHBOARDS
    }
