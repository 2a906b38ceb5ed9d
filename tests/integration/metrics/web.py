"""Asking a process over HTTP, as Prometheus and a probe would."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

Scrape = dict[str, list[Sample]]


class Web:
    """The web port of one process."""

    def __init__(self, port: int) -> None:
        self._at = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> tuple[int, str]:
        """Status and text; 0 while nobody answers."""
        try:
            with urllib.request.urlopen(self._at + path, timeout=10) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def status(self) -> dict[str, Any]:
        """`/statusz`."""
        code, text = self.get("/statusz")
        assert code == 200, text
        found: dict[str, Any] = json.loads(text)
        return found

    def scrape(self) -> Scrape:
        """All samples, by the name of their metric; empty while nobody answers."""
        code, text = self.get("/metrics")
        return {f.name: f.samples for f in text_string_to_metric_families(text)} if code == 200 else {}

    def value(self, name: str, **labels: str) -> float:
        """The one sample with these labels; -1 if there is none."""
        return value(self.scrape(), name, **labels)


def value(scrape: Scrape, name: str, **labels: str) -> float:
    """The one sample with these labels; -1 if there is none."""
    found = [
        s.value for samples in scrape.values() for s in samples if s.name == name and labels.items() <= s.labels.items()
    ]
    assert len(found) < 2, f"{name} {labels}: {found}"
    return found[0] if found else -1
