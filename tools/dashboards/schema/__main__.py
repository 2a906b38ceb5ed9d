"""`python -m tools.dashboards.schema DIRECTORY`: install Grafana's types there, and have tsc check every dashboard."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tools.dashboards import DIRECTORY

HERE = Path(__file__).parent


def check(directory: Path) -> int:
    """Exit code of tsc."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", "types.ts"):
        shutil.copy(HERE / name, directory)
    subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], cwd=directory, check=True)
    files = []
    for path in sorted(DIRECTORY.glob("*.json")):
        files.append(f"{path.stem}.ts")
        text = f"import type {{ Ours }} from './types';\nexport const dashboard: Ours = {path.read_text('utf-8')};\n"
        (directory / files[-1]).write_text(text, "utf-8")
    options = ["--strict", "--noEmit", "--module", "nodenext", "--target", "es2022", "--skipLibCheck", "false"]
    code = subprocess.run(["node_modules/.bin/tsc", *options, *files], check=False, cwd=directory).returncode
    if code == 0:
        print(f"{', '.join(files)}: what @grafana/schema declares, by tsc --strict")
    return code


if __name__ == "__main__":
    raise SystemExit(check(Path(sys.argv[1])))
