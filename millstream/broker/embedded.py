"""Apache Kafka from its own jars, as a child process: one KRaft node for a first run, one-shots and tests."""

from __future__ import annotations

import base64
import fcntl
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TextIO

from millstream.broker.jars import HERE, class_path, java
from millstream.broker.probe import unanswered
from millstream.child import Server, Watchdog, free_port
from millstream.errors import BrokerError
from millstream.logs import get_logger

START_TIMEOUT = 120.0
"""Seconds until the broker must answer. It takes 2 to 3; a machine under load takes longer."""
STOP_TIMEOUT = 15.0
"""Seconds from SIGTERM to SIGKILL. A clean stop takes under 1."""

_JVM = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
"""C1 only: producing 2 M records took the broker 1.6 s of CPU against 2.5 and 3.0 s with C2 (two rounds on a
loaded machine, untested beyond 10 s of load); the start is a little quicker, within the noise."""

_LOCK = "lock"
_TAKEN = "Address already in use"

log = get_logger(__name__)


class EmbeddedBroker(Server):
    """A broker on 127.0.0.1 with its data in `data_dir`, which is kept. `port` 0 takes a free one.

    Use it as a context manager, sync or async, or call `start`, `stop`, `kill`; after `stop` or `kill` a `start` comes
    back on the same port with the same data. It dies with the process that started it, also by kill -9.

    `properties` are added to server.properties and win over what stands there. `features` (`transaction.version`: 0)
    and `cluster_id` (22 characters, base64url; a letter first) hold for a directory that is new.
    """

    def __init__(
        self,
        data_dir: Path | str,
        port: int = 0,
        *,
        heap_mib: int = 768,
        properties: Mapping[str, str] | None = None,
        features: Mapping[str, int] | None = None,
        cluster_id: str | None = None,
    ) -> None:
        self.data_dir, self.port = Path(data_dir).absolute(), port
        self.log_path = self.data_dir / "broker.log"
        self._heap_mib = heap_mib
        self._properties, self._features = dict(properties or {}), dict(features or {})
        self._cluster_id = cluster_id or new_cluster_id()
        self._choose_port = port == 0
        self._lock: TextIO | None = None

    @property
    def bootstrap_servers(self) -> str:
        """`127.0.0.1:port`; the port is known once the broker has started."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start and wait until it answers. Raises BrokerError with the end of the broker's log."""
        if self.pid is not None:
            return
        command, jars = java(), class_path()
        self._take_directory()
        try:
            self._launch_on_free_port(command, jars)
        except BaseException:  # Ctrl-C too.
            self.kill()
            raise

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not end it within STOP_TIMEOUT."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                log.warning("broker_stop_forced", description="SIGTERM did not end the broker", path=str(self.log_path))
        self.kill()

    def kill(self) -> None:
        """SIGKILL: no clean-up runs in the broker, what it acknowledged is in the page cache."""
        self._end_processes()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _end_processes(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._watchdog is not None:
            self._watchdog.kill()
        self._process = self._watchdog = None

    def wait(self) -> int:
        """Wait until the broker ends by itself; its exit code."""
        if self._process is None:
            raise BrokerError("the broker was not started")
        return self._process.wait()

    def _take_directory(self) -> None:
        """Lock the directory until `kill`: a second broker must not overwrite the first one's configuration and log."""
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            lock = (self.data_dir / _LOCK).open("a+")
        except OSError as e:
            raise BrokerError(f"the embedded broker cannot be started in {self.data_dir}: {e}") from e
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            told = (
                f"a broker runs on {self.data_dir} already: wait until the command that started it is done, stop it, "
                "or take another directory (one-shots: MILLSTREAM_DATA_DIR)"
            )
            raise BrokerError(told) from None
        lock.truncate(0)
        self._lock = lock

    def _launch_on_free_port(self, command: str, jars: str) -> None:
        for attempt in range(3):  # Between choosing a free port and Java's bind somebody else may take it.
            if self._choose_port:
                self.port = free_port()
            try:
                self._launch(command, jars)
                break
            except BrokerError as e:
                if not (self._choose_port and _TAKEN in str(e) and attempt < 2):
                    raise
                self._end_processes()
        self._choose_port = False
        assert self._lock is not None
        self._lock.write(f"{os.getpid()} {self.port}\n")
        self._lock.flush()

    def _launch(self, command: str, jars: str) -> None:
        began = time.monotonic()
        try:
            config = self._write_config()
            if not (self.data_dir / "log" / "meta.properties").exists():
                self._format(command, jars, config)
            self._watchdog = Watchdog()
            with self.log_path.open("wb") as out:
                self._process = subprocess.Popen(
                    [
                        command,
                        "-Xms128m",
                        f"-Xmx{self._heap_mib}m",
                        *_JVM,
                        *_logging(),
                        "-cp",
                        jars,
                        "kafka.Kafka",
                        config,
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    process_group=self._watchdog.group,
                )
        except OSError as e:
            raise BrokerError(f"the embedded broker cannot be started in {self.data_dir}: {e}") from e
        self._await_ready(began)
        took = round(time.monotonic() - began, 2)
        log.info("broker_started", description="Kafka answers", servers=self.bootstrap_servers, seconds=took)

    def _write_config(self) -> str:
        (self.data_dir / "log").mkdir(parents=True, exist_ok=True)
        text = (HERE / "server.properties").read_text("utf-8")
        log_dir = str(self.data_dir / "log").replace("\\", "\\\\")
        path = self.data_dir / "server.properties"
        filled = text.format_map({"port": self.port, "controller_port": free_port(), "log_dir": log_dir})
        added = "".join(f"{name}={value}\n" for name, value in self._properties.items())
        path.write_text(filled + added, "utf-8")
        return str(path)

    def _format(self, command: str, jars: str, config: str) -> None:
        arguments = ["kafka.tools.StorageTool", "format", "-t", self._cluster_id, "-c", config]
        for name, level in self._features.items():
            arguments += ["--feature", f"{name}={level}"]
        done = subprocess.run(
            [command, *_JVM, *_logging(), "-cp", jars, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BrokerError(f"formatting {self.data_dir} failed:\n{(done.stdout + done.stderr).strip()}")

    def _await_ready(self, began: float) -> None:
        assert self._process is not None
        while self._process.poll() is None and time.monotonic() - began < START_TIMEOUT:
            if unanswered({"bootstrap.servers": self.bootstrap_servers}, 1.0) is None:
                return
        code = self._process.poll()
        what = f"did not answer within {START_TIMEOUT:g} s" if code is None else f"ended with exit code {code}"
        raise BrokerError(f"the embedded broker {what}. The end of {self.log_path}:\n{self.log_tail()}")


class Running(NamedTuple):
    """Who runs a broker: the process that started it (not Java), and the broker's port."""

    pid: int
    port: int


def running(data_dir: Path) -> Running | None:
    """Who runs a broker on this directory, once it answers. The lock is the proof: a process id may be reused."""
    try:
        with (data_dir / _LOCK).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                words = lock.read().split()
                return Running(int(words[0]), int(words[1])) if len(words) == 2 else None
    except FileNotFoundError:
        pass
    return None


def new_cluster_id() -> str:
    """22 characters. A letter first: Kafka's tool takes an id that begins with "-", one in 64, for an option."""
    return "M" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]


def _logging() -> list[str]:
    return [f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}"]
