"""Where `millstream` begins. It imports next to nothing: see below."""

from __future__ import annotations

import signal


def main() -> None:
    """Load the commands and run one. Ctrl-C meanwhile ends the process without an import's traceback."""
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not where a shell has it ignored
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from streams.cli import main as run

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
