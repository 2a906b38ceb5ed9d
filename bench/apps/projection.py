"""The projection of this repository, through the real worker: `faust -A bench.apps.projection worker`."""

from bench.apps.timing import time_commits

time_commits()

from streams import app  # noqa: E402 - built when it is asked for, with the streams that MILLSTREAM_STREAMS names

__all__ = ["app"]
