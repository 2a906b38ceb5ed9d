"""A worker's web views: `/status` (and `/`), `/statusz`, `/metrics`, `/livez`, `/readyz`.

They answer from the event loop of the worker, and do what takes longer than a moment in a thread of their own.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from millstream import metrics
from millstream.threads import in_thread
from streams.web.page import page

if TYPE_CHECKING:
    from streams.engine.app import App
    from streams.engine.observer import Observer

MOST = 1000
"""Partitions that `/statusz` tells of: those that lag most."""
NO_STORE = {"Cache-Control": "no-store"}


def install(app: App) -> None:
    """Hang the views into the app's web server."""
    made = Views(app)
    router = app.web.web_app.router
    for path in ("/", "/status"):
        router.add_get(path, made.status_page)
    router.add_get("/statusz", made.statusz)
    router.add_get("/metrics", made.metrics)
    router.add_get("/livez", made.livez)
    router.add_get("/readyz", made.readyz)


def exposition(refresh: Callable[[], None]) -> bytes:
    """All metrics as Prometheus reads them. Takes some milliseconds: not for the event loop."""
    refresh()
    return generate_latest()


def answer(body: bytes) -> web.Response:
    """An exposition as an answer."""
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST} | NO_STORE)


class Views:
    """The views of one worker."""

    def __init__(self, app: App) -> None:
        self._app = app

    @property
    def _observer(self) -> Observer:
        return self._app.observer

    async def metrics(self, _request: web.Request) -> web.Response:
        """For Prometheus."""
        return answer(await in_thread(lambda: exposition(self._observer.refresh)))

    async def livez(self, _request: web.Request) -> web.Response:
        """200 while the event loop (it answers) and the loops around Kafka run; else 503, and why."""
        why = self._observer.not_live()
        return web.Response(text=f"{why or 'ok'}\n", status=503 if why else 200, headers=NO_STORE)

    async def readyz(self, _request: web.Request) -> web.Response:
        """200, or 503 with one line per reason."""
        reasons = await in_thread(self._observer.not_ready)
        text = "".join(f"{r.reason}: {r.text}\n" for r in reasons)
        return web.Response(text=text or "ok\n", status=503 if reasons else 200, headers=NO_STORE)

    async def statusz(self, _request: web.Request) -> web.Response:
        """All there is to know, as JSON."""
        found = await in_thread(lambda: json.dumps(status(self._app), default=str))
        return web.Response(text=found, content_type="application/json", headers=NO_STORE)

    async def status_page(self, _request: web.Request) -> web.Response:
        """The same, for a person."""
        found = await in_thread(lambda: page(status(self._app)))
        return web.Response(text=found, content_type="text/html", headers=NO_STORE)


def status(app: App) -> dict[str, Any]:
    """What `/statusz` tells. Not for the event loop."""
    observer, settings, consumer = app.observer, app.settings, app._consumer
    views = sorted(observer.partitions(), key=lambda v: (-v.lag, v.topic, v.partition))
    reasons = observer.not_ready(views)
    (commit,) = (s.value for m in metrics.LAST_COMMIT.collect() for s in m.samples)
    return {
        "program": "millstream",
        "version": app_version(),
        "python": platform.python_version(),
        "now": time.time(),
        "started": observer.started,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "group": settings.group_id,
        "slot": settings.worker_slot,
        "streams": settings.streams,
        "live": not observer.not_live(),
        "ready": not reasons,
        "reasons": [r._asdict() for r in reasons],
        "generation": consumer.joined_as[0] if consumer is not None else -1,
        "last_commit": commit or None,
        "assigned": len(views),
        "partitions": [
            {
                "topic": v.topic, "partition": v.partition, "stream": v.stream, "state": v.state,
                "state_seconds": round(v.seconds, 3), "offset": v.offset, "end": v.end, "lag": v.lag,
                "lag_seconds": round(v.lag_seconds, 3), "chunk": v.chunk, "replays": v.replays, "buffered": v.buffered,
            }
            for v in views[:MOST]
        ],
        "tables": observer.tables(),
        "sinks": observer.sinks(),
        **observer.found,
    }  # fmt: skip


def app_version() -> str:
    """Of this program."""
    (version,) = (s.labels["version"] for m in metrics.BUILD.collect() for s in m.samples)
    return version
