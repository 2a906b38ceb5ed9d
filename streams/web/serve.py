"""`/metrics` of commands that have no worker: MILLSTREAM_METRICS_PORT, or `--metrics-port` of the relay."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from millstream.errors import ConfigError
from millstream.settings import Settings, get_settings

T = TypeVar("T")


@asynccontextmanager
async def metrics_served(settings: Settings) -> AsyncIterator[None]:
    """Inside, metrics are served if a port is set. Raises ConfigError if it is taken."""
    if settings.metrics_port is None:
        yield
        return
    from aiohttp import web

    from millstream.threads import in_thread
    from streams.web.views import NO_STORE, answer, exposition

    async def metrics(_request: web.Request) -> web.Response:
        return answer(await in_thread(lambda: exposition(lambda: None)))

    async def livez(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n", headers=NO_STORE)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/livez", livez)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, settings.web_bind, settings.metrics_port).start()
        except OSError as exc:
            raise ConfigError(
                f"metrics cannot be served at {settings.web_bind}:{settings.metrics_port}: {exc.strerror or exc}. "
                "Choose another MILLSTREAM_METRICS_PORT (--metrics-port), or leave it out"
            ) from None
        yield
    finally:
        await runner.cleanup()


async def served(work: Callable[[], Awaitable[T]]) -> T:
    """Do it; meanwhile metrics are served if the settings say where."""
    async with metrics_served(get_settings()):
        return await work()
