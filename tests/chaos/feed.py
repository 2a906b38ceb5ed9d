"""Feeds the files of one batch, with small messages and a transaction for each, so that there is something to resume.

python -m tests.chaos.feed < jobs.json        a JSON list of sources.feed.FeedJob
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import msgspec

from millstream.settings import get_settings
from sources import feed

ROWS_PER_MESSAGE = 100


def main() -> None:
    """Exit code 0 when all of them are fed; one line for each."""
    jobs = msgspec.json.decode(sys.stdin.buffer.read(), type=list[feed.FeedJob])
    small: Any = partial(feed.RdbReader, batch_rows=ROWS_PER_MESSAGE)
    feed.RdbReader, feed.TXN_MESSAGES = small, 1  # type: ignore[misc]
    for job in jobs:
        print(feed.feed_file(get_settings(), job), flush=True)


if __name__ == "__main__":
    main()
