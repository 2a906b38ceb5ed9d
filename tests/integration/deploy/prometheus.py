"""A real Prometheus with the demo's configuration; what DNS would find is given by hand, and it scrapes each second."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml

from millstream.child import Watchdog, free_port
from tests.support.waiting import wait_until
from tests.unit.deploy.dockerfile import ROOT

CONFIGURATION = ROOT / "deploy" / "prometheus" / "prometheus.yml"


class Prometheus:
    """Use it as a context manager."""

    def __init__(self, home: Path, targets: Mapping[str, int]) -> None:
        """`targets`: service -> port on this machine."""
        self._home, self._port = home, free_port()
        found = yaml.safe_load(CONFIGURATION.read_text("utf-8"))
        found["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        found["rule_files"] = [str(CONFIGURATION.with_name(name)) for name in found["rule_files"]]
        (job,) = (job for job in found["scrape_configs"] if job["job_name"] == "millstream")
        names = job.pop("dns_sd_configs")[0]["names"]
        job["static_configs"] = [
            {"targets": [f"127.0.0.1:{targets[name]}"], "labels": {"__meta_dns_name": name}} for name in names
        ]
        found["scrape_configs"] = [job]
        home.mkdir(parents=True)
        (home / "prometheus.yml").write_text(yaml.safe_dump(found), "utf-8")

    def __enter__(self) -> Self:
        program = shutil.which("prometheus")
        assert program, "prometheus is missing: apt-get install prometheus (Debian), brew install prometheus"
        self._watchdog = Watchdog()
        with (self._home / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, f"--config.file={self._home}/prometheus.yml", f"--storage.tsdb.path={self._home}/data",
                 f"--web.listen-address=127.0.0.1:{self._port}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=self._watchdog.group,
            )  # fmt: skip
        wait_until(self._ready, 60, "Prometheus to be ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._watchdog.kill()

    def _ready(self) -> bool:
        assert self._process.poll() is None, (self._home / "log").read_text("utf-8")
        try:
            return self._get("/-/ready") != ""
        except OSError:
            return False

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The answer of an instant query. AssertionError with what Prometheus said if it refuses."""
        return list(self.ask("query", query=expr)["result"])

    def value(self, expr: str) -> float:
        """The one number of an answer; 0 if there is none."""
        found = self.query(expr)
        return float(found[0]["value"][1]) if found else 0.0

    def ask(self, what: str, **parameters: str) -> Any:
        """An answer of the HTTP API."""
        try:
            answer = json.loads(self._get(f"/api/v1/{what}?{urllib.parse.urlencode(parameters)}"))
        except urllib.error.HTTPError as e:
            raise AssertionError(f"{what} {parameters}: {e.read().decode()}") from e
        assert answer["status"] == "success", answer
        return answer["data"]

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=30) as answer:
            return str(answer.read().decode())
