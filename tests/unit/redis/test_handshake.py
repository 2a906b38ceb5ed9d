"""What can go wrong before, and in, the transfer: each told with host:port and what to do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from millstream.errors import ConfigError
from sources.redis import DumpStream, RedisEndpoint, Tls
from sources.redis import cluster as redis_cluster
from sources.redis.endpoint import join, split
from sources.redis.errors import RedisSourceError, TransferDroppedError
from sources.redis.replica import Replica, begin_patiently
from tests.support.redis_master import Caller, Script, master

RDB = bytes(range(256)) * 1000
USER = {"username": "ann", "password": "hush-hush"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sources.redis.replica.WAIT_FIRST", 0.01)
    monkeypatch.setattr("sources.redis.replica.ACK_SECONDS", 0.01)


async def begin(endpoint: RedisEndpoint, *, wait: float = 20, silence: float = 20, **login: str) -> Replica:
    endpoint = msgspec.structs.replace(endpoint, **login)  # type: ignore[arg-type]
    return await begin_patiently(endpoint, retry_timeout=wait, silence=silence)


async def whole(replica: Replica) -> bytes:
    parts = []
    try:
        while data := await replica.read(100_000):
            parts.append(data)
    finally:
        await replica.close()
    return b"".join(parts)


@pytest.mark.parametrize("diskless", [False, True], ids=["disk", "diskless"])
async def test_a_dump_comes_through_with_keep_alives_and_acknowledgements(diskless: bool) -> None:
    said: list[list[str]] = []

    async def play(caller: Caller) -> None:
        for answer in (b"+OK\r\n", b"+PONG\r\n", b"+OK\r\n", b"-ERR Unrecognized REPLCONF option: rdb-only\r\n"):
            said.append(await caller.command())
            await caller.say(answer)
        said.append(await caller.command())
        await caller.say(b"\n", b"\n", b"+FULLRESYNC 8c3a9a1d 14\r\n\n\n")
        said.append(await caller.command())  # the master would wait for ever without it
        await caller.say(b"$EOF:%b\r\n" % (b"m" * 40) if diskless else b"\n$%d\r\n" % len(RDB))
        await caller.say(RDB[:1000])
        said.append(await caller.command())
        await caller.say(RDB[1000:] + (b"m" * 40 if diskless else b"") + b"*1\r\n$4\r\nPING\r\n")

    async with master(play) as endpoint:
        replica = await begin(endpoint, **USER)
        assert await whole(replica) == RDB
        assert replica.received == len(RDB)
    assert said == [
        ["AUTH", "ann", "hush-hush"],
        ["PING"],
        ["REPLCONF", "capa", "eof", "capa", "psync2"],
        ["REPLCONF", "rdb-only", "1"],
        ["PSYNC", "?", "-1"],
        ["REPLCONF", "ACK", "0"],
        ["REPLCONF", "ACK", "0"],
    ]


def answering(**answers: bytes) -> Script:
    """A server with these answers to commands."""
    usual = {"AUTH": b"+OK\r\n", "PING": b"+PONG\r\n", "REPLCONF": b"+OK\r\n", "PSYNC": b"+FULLRESYNC 8c 1\r\n"}

    async def play(caller: Caller) -> None:
        while True:
            await caller.say((usual | answers)[(await caller.command())[0]])

    return play


@pytest.mark.parametrize(
    ("login", "answers", "says"),
    [
        ({}, {"PING": b"-NOAUTH Authentication required.\r\n"}, "asks for a password: give --password"),
        (USER, {"AUTH": b"-WRONGPASS invalid username-password pair\r\n"}, "refused the password of user 'ann'"),
        ({"password": "x"}, {"AUTH": b"-ERR invalid password\r\n"}, "refused the password of user 'default'"),
        ({"password": "x"}, {"AUTH": b"-ERR Client sent AUTH, but no password is set\r\n"}, "leave --password out"),
        (USER, {"AUTH": b"-ERR wrong number of arguments for 'auth' command\r\n"}, "leave --username out"),
        (USER, {"PSYNC": b"-NOPERM this user has no permissions \r\n"}, r"ACL SETUSER ann .*psync"),
        (USER, {"REPLCONF": b"-NOPERM this user has no permissions\r\n"}, "run REPLCONF"),
        ({}, {"PSYNC": b"-ERR unknown command 'PSYNC'\r\n"}, "a proxy or managed service.*from-file"),
        ({}, {"PING": b"-DENIED Redis is running in protected mode\r\n"}, "protected mode"),
        ({}, {"PSYNC": b"-ERR something new\r\n"}, "answered PSYNC with: ERR something new"),
        ({}, {"PSYNC": b"+CONTINUE\r\n"}, "answered PSYNC with 'CONTINUE'"),
        ({}, {"PSYNC": b"+FULLRESYNC 8c 1\r\n-ERR not now\r\n"}, "answered PSYNC with: ERR not now"),
        ({}, {"PSYNC": b"+FULLRESYNC 8c 1\r\n*1\r\n"}, "announced no dump"),
        ({}, {"PING": b"HTTP/1.1 400 Bad Request\r\n"}, r"not a Redis: it answered b'HTTP/1.1"),
        ({}, {"PING": b"\x15\x03\x01\x00\x02\x02\x46\n"}, "speaks TLS: add --tls"),
        ({}, {"PING": b"x" * 3_000_000}, "not a Redis"),
    ],
)  # fmt: skip
async def test_a_refusal_is_explained(login: dict[str, str], answers: dict[str, bytes], says: str) -> None:
    async with master(answering(**answers)) as endpoint:
        with pytest.raises(RedisSourceError, match=rf"{endpoint.address}.*{says}") as told:
            await begin(endpoint, **login)
    assert "hush-hush" not in str(told.value)  # T42


async def test_a_user_without_ping_can_dump() -> None:
    async def play(caller: Caller) -> None:
        for answer in (b"+OK\r\n", b"-NOPERM no ping\r\n", b"+OK\r\n", b"+OK\r\n"):
            await caller.command()
            await caller.say(answer)
        await caller.command()
        await caller.dump(RDB)

    async with master(play) as endpoint:
        assert await whole(await begin(endpoint, **USER)) == RDB


BUSY = [
    b"-LOADING Redis is loading the dataset in memory\r\n",
    b"-BUSY Redis is busy running a script\r\n",
    b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
    b"-ERR max number of clients reached\r\n",
]


@pytest.mark.parametrize("busy", BUSY)
async def test_a_server_that_is_busy_is_asked_again(busy: bytes) -> None:
    async def play(caller: Caller) -> None:
        if caller.number < 6:
            await caller.command()
            await caller.say(busy)
            return
        await caller.shake_hands()
        await caller.dump(RDB, diskless=True)

    async with master(play) as endpoint:
        assert await whole(await begin(endpoint)) == RDB


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"PING": BUSY[0]}, "LOADING.*MILLSTREAM_REDIS_RETRY_TIMEOUT"),
        ({"PSYNC": b"-NOMASTERLINK Can't SYNC while not connected with my master\r\n"}, "a replica without its master"),
        ({"PSYNC": b"+FULLRESYNC 8c 1\r\n-ERR BGSAVE failed, replication can't continue\r\n"}, "BGSAVE failed"),
    ],
)
async def test_not_for_ever(answer: dict[str, bytes], says: str) -> None:
    async with master(answering(**answer)) as endpoint:
        with pytest.raises(RedisSourceError, match=rf"{endpoint.address} cannot P.* just now: .*{says}"):
            await begin(endpoint, wait=0.1)


async def test_a_connection_that_is_closed_at_once_is_tried_four_times() -> None:
    calls = []

    async def play(caller: Caller) -> None:
        calls.append(await caller.command())

    async with master(play) as endpoint:
        with pytest.raises(RedisSourceError, match=r"closed the connection instead of answering PING.*--tls.*4 times"):
            await begin(endpoint)
    assert len(calls) == 4
    with pytest.raises(
        RedisSourceError,
        match=rf"cannot connect to {endpoint.address}: Connection refused.*Is Redis running there.*4 times",
    ):
        await begin(endpoint)


async def test_a_server_that_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sources.redis.connection.REPLY_SECONDS", 0.05)

    async def play(caller: Caller) -> None:
        await caller.command()
        await asyncio.sleep(100)

    async with master(play) as endpoint:
        with pytest.raises(RedisSourceError, match=r"did not answer PING for 0.05 s.*--tls"):
            await begin(endpoint)


async def test_an_unknown_host_is_told_and_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    async def unknown(*_: object, **__: object) -> None:
        calls.append(1)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio, "open_connection", unknown)
    with pytest.raises(RedisSourceError, match=r"redis\.invalid:6379: there is no host of the name 'redis.invalid'"):
        await begin(RedisEndpoint(host="redis.invalid", port=6379))
    assert calls == [1]


async def test_tls_to_a_plain_server_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(caller: Caller) -> None:
        await caller.reader.read(1)
        await caller.say(b"-ERR Protocol error\r\n")

    async with master(play) as endpoint:
        with pytest.raises(RedisSourceError, match=r"no TLS connection .*leave --tls out"):
            await begin(msgspec.structs.replace(endpoint, tls=Tls(verify=False)))

    async def wait(caller: Caller) -> None:
        await asyncio.sleep(100)

    monkeypatch.setattr("sources.redis.connection.CONNECT_SECONDS", 0.05)
    async with master(wait) as endpoint:
        with pytest.raises(RedisSourceError, match=r"does not answer .*leave --tls out"):
            await begin(msgspec.structs.replace(endpoint, tls=Tls(verify=False)))


async def test_tls_files_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match=r"TLS files \(/no/such\.pem\)"):
        await begin(RedisEndpoint(host="127.0.0.1", port=1, tls=Tls(ca_file="/no/such.pem")))


async def drops(caller: Caller) -> None:
    await caller.shake_hands()
    await caller.dump(RDB, of=70_000)


async def falls_silent(caller: Caller) -> None:
    await drops(caller)
    await asyncio.sleep(100)


@pytest.mark.parametrize(
    ("script", "silence", "says"),
    [
        (drops, 20, "closed the connection after 70000 bytes of its dump; its log says why"),
        (falls_silent, 0.1, "fell silent for 0.1 s after 70000 bytes"),
    ],
)
async def test_a_transfer_that_breaks_off_is_told(script: Script, silence: float, says: str) -> None:
    async with master(script) as endpoint:
        replica = await begin(endpoint)
        left = 70_000
        while left:
            left -= len(await replica.read(left))
        replica._silence = silence  # only now: a pause of this machine is no silence of the master
        with pytest.raises(TransferDroppedError, match=rf"{endpoint.address} {says}"):
            await whole(replica)


async def test_a_slow_reader_slows_the_master_and_holds_little() -> None:
    sent = 0
    stuck = asyncio.Event()

    async def play(caller: Caller) -> None:
        nonlocal sent
        await caller.shake_hands()
        await caller.say(b"+FULLRESYNC 8c 1\r\n$%d\r\n" % (1 << 40))
        while sent < 1 << 30:
            try:
                await asyncio.wait_for(caller.say(b"x" * 65_536), 0.5)
            except TimeoutError:
                break
            sent += 65_536
        stuck.set()

    async with master(play) as endpoint:
        replica = await begin(endpoint)
        await replica.read(10)
        async with asyncio.timeout(60):
            await stuck.wait()
        await replica.close()
    assert sent < 64 << 20  # what both sockets and the reader's buffer take


@pytest.mark.parametrize("diskless", [False, True], ids=["disk", "diskless"])
async def test_a_master_that_closes_behind_the_dump_takes_nothing_with_it(diskless: bool) -> None:
    # rdb-only: what we sent it now would be answered with a reset, and the rest of the dump would be lost
    closed, dump = asyncio.Event(), RDB * 20

    async def play(caller: Caller) -> None:
        await caller.shake_hands()
        caller.writer.transport.set_write_buffer_limits(1 << 30)
        await caller.dump(dump, diskless=diskless)
        caller.writer.close()
        closed.set()

    async with master(play) as endpoint:
        replica = await begin(endpoint)
        first = await replica.read(10)
        async with asyncio.timeout(20):
            await closed.wait()
        await asyncio.sleep(0.1)  # ten acknowledgements, if there were any
        assert first + await whole(replica) == dump


async def test_a_stream_for_a_thread_beats_while_it_waits_and_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sources.redis.stream.BEAT_SECONDS", 0.01)
    beats, go_on = [], asyncio.Event()
    loop = asyncio.get_running_loop()

    def waiting() -> None:
        beats.append(1)
        if len(beats) == 3:
            loop.call_soon_threadsafe(go_on.set)

    async def play(caller: Caller) -> None:
        await caller.shake_hands()
        await caller.say(b"+FULLRESYNC 8c 1\r\n")
        await go_on.wait()
        await caller.say(b"$100000\r\n" + b"x" * 10)
        await asyncio.sleep(100)

    async with master(play) as endpoint:
        stream = DumpStream(endpoint, retry_timeout=20, silence=20)
        await asyncio.to_thread(stream.open, waiting)
        assert len(beats) >= 3
        reading = asyncio.create_task(asyncio.to_thread(stream.read, 100))
        await asyncio.to_thread(stream.close)
        with pytest.raises(TransferDroppedError, match="given up here"):
            await reading
        with pytest.raises(TransferDroppedError, match="given up here"):
            stream.read(1)
        await asyncio.to_thread(stream.close)


async def _ask(script: Callable[[Caller], Awaitable[None]], *more: RedisEndpoint) -> list[str]:
    async with master(script) as endpoint:
        chosen = await redis_cluster.discover([*more, endpoint], require_slave=False)
    return [node.address for node in chosen.nodes]


async def test_the_nodes_of_a_cluster_are_asked_one_after_the_other() -> None:
    nodes = b"a1 :7000@17000 myself,master - 0 0 1 connected 0-16383\n"
    gone = RedisEndpoint(host="127.0.0.1", port=1)
    assert await _ask(answering(CLUSTER=b"$%d\r\n%b\r\n" % (len(nodes), nodes)), gone) == ["127.0.0.1:7000"]
    with pytest.raises(
        RedisSourceError, match=r"(?s)no node of --nodes.*127.0.0.1:1.*no node of a Redis Cluster: use from-sta"
    ):
        await _ask(answering(CLUSTER=b"-ERR This instance has cluster support disabled\r\n"), gone)


@pytest.mark.parametrize("text", ["h:1", "[::1]:6379", "redis.example:65535"])
def test_addresses_are_read_and_written(text: str) -> None:
    assert join(*split(text)) == text


@pytest.mark.parametrize("text", ["", "h", "h:", ":1", "h:0", "h:65536", "h:x", "::1:6379", "redis://h:1", "h:１"])
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host:port|1 to 65535"):
        split(text)


def test_a_password_is_never_shown() -> None:
    endpoint = RedisEndpoint(host="h", port=1, **USER)
    assert "hush" not in repr(endpoint) + str(endpoint) + f"{endpoint!r:>200}"  # T42
