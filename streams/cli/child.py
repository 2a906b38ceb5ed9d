"""`python -m streams.cli.child worker …`: a Faust worker that ends with the process that started it.

Its stdin is a pipe that the parent holds open; when the parent is gone, however, the pipe ends and so does the worker.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGKILL)  # like any crash: the next start recovers


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    from faust.cli.faust import cli

    from millstream.start import without_pandas

    without_pandas()  # the agents are ours
    sys.argv = ["faust", "-A", "streams", *sys.argv[1:]]
    cli()
