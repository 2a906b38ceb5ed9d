"""`GET /videos/{id}?min_version=N&timeout_ms=M`: a video as the projection has it, and whether it is recent enough.

A writer gets a token (id and version) from the outbox; who reads with `min_version` sees that write or is told that it
is not there yet (RO-93, T59). `state` is one of

- `ahead`, `equal` (200): the projection has a later version, or this one. Without `min_version` it is `ahead`;
- `behind` (409): it has earlier ones only, or the video's creation is still to come;
- `deleted` (410);
- `never_existed` (404): no event of this video has come.

`behind` and `never_existed` are answered after `timeout_ms`, which is cut to MILLSTREAM_VIDEOS_WAIT_MAX.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

from mode import Service

from millstream.errors import MillstreamError, PostgresError
from millstream.logs import get_logger
from millstream.postgres import Pool, create_pool, load, naming
from millstream.settings import Settings
from sinks.factory import postgres_config
from streams import app

POLL = 0.02
"""Seconds between looks while a reader waits; doubled each time up to POLL_MAX."""
POLL_MAX = 0.2
STATUS = {"ahead": 200, "equal": 200, "behind": 409, "deleted": 410, "never_existed": 404}

_SQL = load("streams", "videos.sql")
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
_EXAMPLE = "as in /videos/0b54e3c8-6c2f-4b8b-9d3c-0a1b2c3d4e5f?min_version=3&timeout_ms=500"

log = get_logger(__name__)


class BadRequestError(MillstreamError):
    """The request cannot be understood. The text says what to send."""


class Wanted(NamedTuple):
    """A request, understood."""

    video_id: UUID
    min_version: int
    timeout: float
    """Seconds."""


def understand(video_id: str, query: Mapping[str, str], longest: float) -> Wanted:
    """Raises BadRequestError."""
    try:
        found = UUID(video_id)
    except ValueError:
        raise BadRequestError(f"{video_id!r} is not a UUID; ask {_EXAMPLE}") from None
    if unknown := sorted(query.keys() - {"min_version", "timeout_ms"}):
        raise BadRequestError(f"no parameter {unknown[0]!r}: there are min_version and timeout_ms, {_EXAMPLE}")
    numbers = []
    for name in ("min_version", "timeout_ms"):
        text = query.get(name, "0")
        if _NUMBER.fullmatch(text) is None:
            raise BadRequestError(f"{name} is {text!r}, must be an integer from 0, {_EXAMPLE}")
        numbers.append(int(text))
    return Wanted(found, numbers[0], min(numbers[1] / 1000, longest))


def state_of(row: Mapping[str, Any] | None, min_version: int) -> str:
    """Which of the five it is (T59)."""
    if row is None:
        return "never_existed"
    if row["version"] < min_version:
        return "behind"
    if row["visible"]:
        return "equal" if row["version"] == min_version else "ahead"
    return "deleted" if row["deleted_version"] else "behind"


class VideoReader:
    """Reads the projection. Connects when first asked."""

    def __init__(self, settings: Settings) -> None:
        config = postgres_config(settings)
        self._url, self._longest = config.url, settings.videos_wait_max
        self._size = config.pool_size
        self._pool: Pool | None = None

    async def answer(self, video_id: str, query: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        """HTTP status and body."""
        try:
            wanted = understand(video_id, query, self._longest)
            return await self._wait(wanted)
        except BadRequestError as e:
            return 400, {"error": str(e)}
        except PostgresError as e:
            log.error("video_read", error=str(e), description="the projection cannot be read")
            return 503, {"error": "the projection cannot be read at the moment: try again, or ask the sovereign store"}

    async def close(self) -> None:
        """Release the connections."""
        if self._pool is not None:
            self._pool.terminate()

    async def _wait(self, wanted: Wanted) -> tuple[int, dict[str, Any]]:
        deadline, pause = time.monotonic() + wanted.timeout, POLL
        while True:
            row = await self._row(wanted.video_id)
            state = state_of(row, wanted.min_version)
            left = deadline - time.monotonic()
            if state not in ("behind", "never_existed") or left <= 0:
                break
            await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, POLL_MAX)
        body = {"state": state, "video_id": str(wanted.video_id), "min_version": wanted.min_version}
        body["version"] = 0 if row is None else row["version"]
        if STATUS[state] == 200 and row is not None:
            body["video"] = json.loads(row["video"])
        return STATUS[state], body

    async def _row(self, video_id: UUID) -> Mapping[str, Any] | None:
        with naming("read the projection", self._url):
            if self._pool is None:
                self._pool = await create_pool(self._url, self._size, "millstream-videos")
            row = await self._pool.fetchrow(_SQL["video"], video_id)
            return None if row is None else dict(row)


reader = VideoReader(app.settings)


@app.service
class VideoReaderService(Service):
    """Ends the reader with the worker."""

    async def on_stop(self) -> None:
        """Close its connections."""
        await reader.close()


@app.page("/videos/{video_id}")
async def video(web: Any, request: Any, video_id: str) -> Any:
    """A video of the projection."""
    status, body = await reader.answer(video_id, request.query)
    return web.json(body, status=status)
