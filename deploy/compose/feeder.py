"""What keeps the demo of docker-compose.yml busy: `feeder.py dumps` and `feeder.py videos`. No part of the product.

`dumps` writes three RDB files of DEMO_KEYS keys, feeds them as one batch, and does so again every DEMO_INTERVAL
seconds. `videos` writes DEMO_RATE changes a second to videos in Postgres, each with its event for the outbox. Either
touches /tmp/alive whenever it got something done: the container's health check looks at that file.
"""

from __future__ import annotations

import asyncio
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from uuid import uuid4

INSTANCES = ("10.0.0.1:6379", "10.0.0.2:6379", "10.0.0.3:6379")
KEYS = int(os.environ.get("DEMO_KEYS", "20000"))
INTERVAL = float(os.environ.get("DEMO_INTERVAL", "60"))
RATE = float(os.environ.get("DEMO_RATE", "20"))
WRITER = os.environ.get("DEMO_RDB_WRITER", "bench/make_rdb.py")
TEMPORARY = Path(tempfile.gettempdir())
ALIVE = TEMPORARY / "alive"


def dumps() -> None:
    """A batch every INTERVAL seconds. A failed one ends the program: compose starts it again."""
    write = runpy.run_path(WRITER)["write_mixed"]
    while True:
        started = time.monotonic()
        command = ["millstream", "dump", "from-file", "--cluster", "demo"]
        for instance in INSTANCES:
            path = TEMPORARY / f"{instance.partition(':')[0]}.rdb"
            write(path, KEYS, random.randrange(1_000_000))
            command += ["--path", str(path), "--instance", instance]
        subprocess.run([*command, "feed"], check=True)
        ALIVE.touch()
        time.sleep(max(0.0, INTERVAL - (time.monotonic() - started)))


async def videos() -> None:
    """Creates, changes and deletes videos, one after the other, until it is ended."""
    from millstream.postgres import connect
    from millstream.settings import get_settings
    from sources.outbox.videos import Videos

    url = get_settings().postgres_url
    if url is None:
        raise SystemExit("feeder.py videos needs MILLSTREAM_POSTGRES_URL")
    async with connect(url.get_secret_value()) as connection:
        shop, known = Videos(connection), []
        while True:
            if len(known) < 50 or random.random() < 0.1:
                known.append(uuid4())
                await shop.create(known[-1], uuid4(), f"Video {len(known)}", duration_micros=60_000_000)
            elif random.random() < 0.05:
                await shop.delete(known.pop(random.randrange(len(known))), reason="the demo deletes some")
            else:
                changes = {"title": f"Video, cut {random.randrange(1000)}", "tags": [f"t{random.randrange(9)}"]}
                await shop.update(random.choice(known), changes)
            ALIVE.touch()
            await asyncio.sleep(1 / RATE)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    if sys.argv[1:] == ["dumps"]:
        dumps()
    elif sys.argv[1:] == ["videos"]:
        asyncio.run(videos())
    else:
        raise SystemExit("usage: feeder.py dumps | videos")
