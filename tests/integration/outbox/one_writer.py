"""python -m tests.integration.outbox.one_writer URL VIDEO: creates one video."""

from __future__ import annotations

import asyncio
import sys
from uuid import UUID

from millstream.postgres import connect
from sources.outbox import Videos


async def main(url: str, video: str) -> None:
    async with connect(url) as connection:
        await Videos(connection).create(UUID(video), UUID(int=9), "title")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
