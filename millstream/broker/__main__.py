"""`python -m millstream.broker run|start|stop --data-dir D [--port P]`: a development broker."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from millstream.broker.embedded import START_TIMEOUT, STOP_TIMEOUT, EmbeddedBroker, Running, running
from millstream.errors import BrokerError, MillstreamError
from millstream.logs import configure
from millstream.settings import get_settings

FETCH_TIMEOUT = 300.0
"""Seconds that fetching the jars may add on a fresh machine."""


class _Stop(BaseException):
    """SIGTERM or Ctrl-C."""


def _on_signal(_number: int, _frame: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # The stop that now begins is bounded by itself.
    raise _Stop


def run(data_dir: Path, port: int) -> int:
    """In the foreground, until a signal or the broker's own end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _on_signal)
    with suppress(_Stop), EmbeddedBroker(data_dir, port) as broker:
        print(f"Kafka answers at {broker.bootstrap_servers}; Ctrl-C stops it", flush=True)
        code, tail = broker.wait(), broker.log_tail()
        raise BrokerError(f"the broker ended with exit code {code}. The end of {broker.log_path}:\n{tail}")
    return 0


def start(data_dir: Path, port: int) -> int:
    """In the background, detached from the terminal; returns when it answers."""
    found = running(data_dir) or _spawn(data_dir, port)
    if port and found.port != port:
        raise BrokerError(
            f"a broker runs on {data_dir} already, at port {found.port}. Stop it, or give another --data-dir"
        )
    print(
        f"Kafka runs in the background at 127.0.0.1:{found.port}, data in {data_dir}.\n"
        f"  use it:   export MILLSTREAM_BOOTSTRAP_SERVERS=127.0.0.1:{found.port}\n"
        f"  its log:  {data_dir / 'broker.log'}\n"
        f"  stop it:  make kafka-stop KAFKA_PORT={found.port}\n"
        f"       or:  {sys.executable} -m millstream.broker stop --data-dir {data_dir}"
    )
    return 0


def _spawn(data_dir: Path, port: int) -> Running:
    data_dir.mkdir(parents=True, exist_ok=True)
    output = data_dir / "run.log"
    with output.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "millstream.broker", "run", "--data-dir", str(data_dir), "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT + FETCH_TIMEOUT
    while (found := running(data_dir)) is None:
        if child.poll() is not None or time.monotonic() > deadline:
            raise BrokerError(f"the broker did not start. The end of {output}:\n{output.read_text().strip()[-3000:]}")
        time.sleep(0.1)
    return found


def stop(data_dir: Path) -> int:
    """Stop what `start` started."""
    found = running(data_dir)
    if found is None:
        print(f"no broker runs on {data_dir}")
        return 0
    os.kill(found.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT + 5
    while running(data_dir) is not None:
        if time.monotonic() > deadline:
            raise BrokerError(f"process {found.pid} did not end within {STOP_TIMEOUT + 5:g} s of SIGTERM")
        time.sleep(0.05)
    print("stopped")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m millstream.broker", description="A development Kafka broker.")
    parser.add_argument("action", choices=["run", "start", "stop"])
    parser.add_argument("--data-dir", type=Path, required=True, help="where its data, its log and its pid file are")
    parser.add_argument("--port", type=int, default=9092, help="port on 127.0.0.1 (default 9092; 0: a free one)")
    given = parser.parse_args(arguments)
    try:
        configure(get_settings())
        if given.action == "stop":
            return stop(given.data_dir)
        return (run if given.action == "run" else start)(given.data_dir, given.port)
    except MillstreamError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
