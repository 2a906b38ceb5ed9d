"""`python -m tools.dashboards`: write deploy/grafana/dashboards."""

from __future__ import annotations

from tools.dashboards import DIRECTORY, files

DIRECTORY.mkdir(parents=True, exist_ok=True)
for path, text in files().items():
    path.write_text(text, "utf-8")
    print(path)
