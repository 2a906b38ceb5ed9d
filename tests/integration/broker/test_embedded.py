"""The embedded broker: starting, stopping, what it says when it cannot, and what it never leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from millstream.broker import EmbeddedBroker, broker_from, check_broker
from millstream.errors import BrokerError
from millstream.settings import Settings
from tests.conftest import MakeTopic, Unique
from tests.support.kafka import create_topic, produce, read_all
from tests.support.waiting import until, wait_until


def processes() -> Iterator[tuple[int, int, str]]:
    """(process id, process group, command line) of all living processes."""
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,pgid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout
    for line in listed.splitlines():
        pid, group, status, *command = line.split(maxsplit=3)
        if not status.startswith("Z"):
            yield int(pid), int(group), "".join(command)


def processes_on(directory: Path) -> list[int]:
    """Process ids of brokers whose data is under the directory."""
    return [pid for pid, _, command in processes() if "kafka.Kafka" in command and str(directory) in command]


def group_of(pid: int) -> list[int]:
    """Process ids of the process group that `pid` belongs to."""
    groups = {p: group for p, group, _ in processes()}
    return [p for p, group in groups.items() if group == groups[pid]]


def program(directory: Path, name: str, text: str) -> str:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(directory)


def test_data_and_port_outlive_a_stop_and_a_kill(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    with broker:
        servers = broker.bootstrap_servers
        assert processes_on(tmp_path) == [broker.pid]
        create_topic(AdminClient({"bootstrap.servers": servers}), "t")
        produce(servers, "t", [{"value": b"before"}])
        broker.kill()
        assert broker.pid is None
        broker.start()
        assert broker.bootstrap_servers == servers
        produce(servers, "t", [{"value": b"after"}])
        assert [m.value() for m in read_all(servers, "t")] == [b"before", b"after"]
    assert processes_on(tmp_path) == []
    broker.stop()  # again is no error


def test_a_topic_that_nobody_declared_is_not_made_by_looking_for_it(admin: AdminClient, unique: Unique) -> None:  # T8
    name = unique("mistyped")
    for _ in range(2):
        assert admin.list_topics(name, timeout=10).topics[name].error is not None


def test_a_record_of_16_mib_less_its_overhead_is_taken(kafka: str, make_topic: MakeTopic) -> None:  # T14
    topic = make_topic("large", config={"max.message.bytes": str(16 * 1024**2)})
    value = os.urandom(15 * 1024**2)
    produce(kafka, topic, [{"value": value}], {"message.max.bytes": 16 * 1024**2})
    assert [m.value() == value for m in read_all(kafka, topic)] == [True]


def test_a_killed_parent_takes_its_broker_along(tmp_path: Path) -> None:
    code = f"""
import time
from millstream.broker import EmbeddedBroker
from millstream.logs import configure
from millstream.settings import Settings
configure(Settings())
broker = EmbeddedBroker({str(tmp_path)!r})
broker.start()
print(broker.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        group = group_of(pid)
        assert len(group) >= 2  # the broker and what watches over it
        parent.kill()
    wait_until(lambda: not {pid for pid, *_ in processes()} & set(group), 10, f"the end of processes {group}")


def test_a_port_that_is_taken_is_told_with_the_end_of_the_brokers_log(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        broker = EmbeddedBroker(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(BrokerError, match="ended with exit code 1") as raised:
            broker.start()
    assert "Address already in use" in str(raised.value)
    assert str(broker.log_path) in str(raised.value)
    assert processes_on(tmp_path) == []


def test_two_brokers_on_one_directory_are_told_apart(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as first:
        with pytest.raises(BrokerError, match=f"a broker runs on {tmp_path} already"):
            EmbeddedBroker(tmp_path).start()
        assert first.pid is not None


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerError, match=r"cannot be started in .*/file/kafka"):
        EmbeddedBroker(tmp_path / "file" / "kafka").start()


@pytest.mark.parametrize(
    ("java", "told"),
    [
        (None, "'.*/bin/java' was not found"),
        ("echo 'openjdk version \"11.0.2\" 2019' >&2", 'is openjdk version "11.0.2" 2019'),
        ("exit 3", "-version' failed"),
    ],
)
def test_a_missing_or_old_java_says_what_to_install(
    java: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    if java is not None:
        program(tmp_path / "bin", "java", f"#!/bin/sh\n{java}\n")
    with pytest.raises(
        BrokerError, match=f"needs Java 17 or newer.*{told}.*openjdk-17-jre-headless.*BOOTSTRAP_SERVERS"
    ):
        EmbeddedBroker(tmp_path / "data").start()


def test_a_missing_maven_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", program(tmp_path / "bin", "java", "#!/bin/sh\necho 'version \"21\"' >&2\n"))
    with pytest.raises(BrokerError, match=r"'mvn' was not found\. Install it: apt-get install maven"):
        EmbeddedBroker(tmp_path / "data").start()


def test_a_maven_that_fails_shows_what_it_said_and_leaves_no_half_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = program(tmp_path / "bin", "mvn", "#!/bin/sh\necho 'Could not transfer artifact'\nexit 1\n")
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    with pytest.raises(BrokerError, match=r"Maven Central reachable\?\):\nCould not transfer artifact"):
        EmbeddedBroker(tmp_path / "data").start()
    assert list((tmp_path / "cache" / "millstream").rglob("libs")) == []


async def test_without_a_configured_broker_one_is_started_and_stopped_again_also_when_cancelled(tmp_path: Path) -> None:
    started = asyncio.Event()

    async def one_shot() -> None:
        async with broker_from(Settings(data_dir=tmp_path)) as servers:
            await check_broker(Settings(bootstrap_servers=servers))
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(one_shot())
    await asyncio.wait_for(started.wait(), 60)
    assert len(processes_on(tmp_path)) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes_on(tmp_path) == []


async def test_a_one_shot_cancelled_while_its_broker_starts_leaves_none(tmp_path: Path) -> None:
    task = asyncio.create_task(EmbeddedBroker(tmp_path).__aenter__())
    await until(lambda: processes_on(tmp_path), 30, "the broker's process")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes_on(tmp_path) == []


async def test_a_configured_broker_is_used_as_it_is(kafka: str, tmp_path: Path) -> None:
    async with broker_from(Settings(bootstrap_servers=kafka, data_dir=tmp_path / "data")) as servers:
        assert servers == kafka
    assert not (tmp_path / "data").exists()


async def test_a_configured_broker_that_does_not_answer_is_a_clear_error() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{s.getsockname()[1]}"
    told = f"no Kafka broker answers at MILLSTREAM_BOOTSTRAP_SERVERS = '{nobody}' .*Connection refused"
    with pytest.raises(BrokerError, match=told):
        await check_broker(Settings(bootstrap_servers=nobody), timeout=1)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "millstream.broker", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=90)


def test_a_development_broker_runs_in_the_background_until_it_is_stopped(tmp_path: Path) -> None:
    here = ["--data-dir", tmp_path / "dev", "--port", 0]
    first = command("start", *here)
    try:
        assert first.returncode == 0, first.stderr
        assert "export MILLSTREAM_BOOTSTRAP_SERVERS=127.0.0.1:" in first.stdout
        assert "make kafka-stop" in first.stdout
        assert command("start", *here).stdout == first.stdout  # It runs already: no second one.
        assert len(processes_on(tmp_path)) == 1
        other_port = command("start", "--data-dir", tmp_path / "dev", "--port", 1)
        assert (other_port.returncode, "already, at port" in other_port.stderr) == (1, True)
    finally:
        stopped = command("stop", *here)
    assert (stopped.returncode, stopped.stdout) == (0, "stopped\n")
    assert processes_on(tmp_path) == []
    assert "no broker runs on" in command("stop", *here).stdout


def test_a_background_start_that_fails_shows_why(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = command("start", "--data-dir", tmp_path, "--port", taken.getsockname()[1])
    assert done.returncode == 1
    assert "the broker did not start" in done.stderr
    assert "Address already in use" in done.stderr


def test_a_broker_in_the_foreground_ends_on_ctrl_c_with_exit_code_0(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "millstream.broker", "run", "--data-dir", str(tmp_path), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert "Kafka answers at 127.0.0.1:" in run.stdout.readline()
        run.send_signal(signal.SIGINT)
        assert run.wait(30) == 0
    assert processes_on(tmp_path) == []
