"""Ctrl-C while the program is being loaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

INTERRUPTED = """
import os, signal, sys
from streams import program

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "streams.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
program.main()
"""


def test_ctrl_c_while_the_commands_are_loaded_ends_the_program_without_a_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_next_to_nothing_is_imported_before_that() -> None:
    look = "import sys, streams.program; print([m for m in ('click', 'pyarrow', 'asyncio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.stdout == "[]\n", done.stderr
