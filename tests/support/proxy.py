"""A TCP proxy in front of one broker that understands Kafka's frames: it delays, stalls, drops, cuts and holds back.

The broker must advertise the proxy's port on the listener behind it (`listeners` below), so that all traffic of a
client passes here, whoever coordinates. Runs in a thread of its own; everything public may be called from any other.

A request is `size | api key | api version | correlation id | client id | body`, an answer `size | correlation id | …`.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.support.waiting import wait_until

T = TypeVar("T")

PRODUCE, FETCH, HEARTBEAT = 0, 1, 12
ADD_PARTITIONS, ADD_OFFSETS, END_TXN, TXN_OFFSET_COMMIT = 24, 25, 26, 28
_FLEXIBLE = {END_TXN: 3, TXN_OFFSET_COMMIT: 3}
"""From this version on the API's messages have compact strings and tagged fields."""

NONE, INVALID_PRODUCER_EPOCH, PRODUCER_FENCED = 0, 47, 90


def listeners(port: int, controller: int, behind: int, advertised: int) -> dict[str, str]:
    """server.properties of a broker with a second listener at port `behind`, advertised as the proxy's port."""
    return {
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},PROXIED://127.0.0.1:{behind}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{advertised}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
    }


@dataclass
class Request:
    """One request frame."""

    api: int
    version: int
    correlation: int
    client: str
    frame: bytes
    """With its size."""

    @classmethod
    def parse(cls, frame: bytes) -> Self:
        api, version, correlation, length = struct.unpack_from(">hhih", frame, 4)
        return cls(api, version, correlation, frame[14 : 14 + max(0, length)].decode(), frame)

    def names(self, text: str) -> bool:
        """True if the text stands in the body: a transactional id, a topic."""
        return text.encode() in self.frame


def error_of(api: int, version: int, answer: bytes) -> int | None:
    """Error code of an answer to EndTxn, or of the first partition in one to TxnOffsetCommit; of others None."""
    if api not in _FLEXIBLE:
        return None
    flexible = version >= _FLEXIBLE[api]
    at = 4 + 4 + int(flexible) + 4  # size, correlation id, tagged fields, throttle time
    if api == TXN_OFFSET_COMMIT:
        if flexible:  # one-byte lengths, plus one: our names and counts are short
            at += 1 + answer[at + 1]  # topics, name
            at += 1 + 4  # partitions, index
        else:
            at += 4
            at += 2 + struct.unpack_from(">h", answer, at)[0]
            at += 4 + 4
    return int(struct.unpack_from(">h", answer, at)[0])


Match = Callable[[Request], bool]


@dataclass
class Held:
    """A request that was kept back. `caught` is set once there is one."""

    match: Match
    cut: bool
    """The client's connection is cut at once. Else it lives, and waits: what it sends later queues up behind."""
    caught: threading.Event = field(default_factory=threading.Event)
    request: Request | None = None
    _send: Callable[[], Coroutine[Any, Any, bytes]] | None = None
    _proxy: KafkaProxy | None = None

    def wait(self, timeout: float = 120) -> Request:
        """Until a request was caught."""
        wait_until(self.caught.is_set, timeout, "a request to hold")
        assert self.request is not None
        return self.request

    def release(self, timeout: float = 30) -> int | None:
        """Let it go on to the broker, on the connection that it came by; see `error_of`."""
        assert self._send is not None
        assert self._proxy is not None
        assert self.request is not None
        answer = self._proxy.run(self._send(), timeout)
        return error_of(self.request.api, self.request.version, answer)


class _Link:
    """One client connection and the broker's connection behind it."""

    def __init__(
        self, client: tuple[asyncio.StreamReader, asyncio.StreamWriter], broker: tuple[Any, asyncio.StreamWriter]
    ) -> None:
        self.from_client, self.to_client = client
        self.from_broker, self.to_broker = broker
        self.waiting: dict[int, asyncio.Future[bytes]] = {}
        """Correlation id -> who wants the broker's answer in place of the client."""
        self.cut_at: set[int] = set()
        """Correlation ids whose answer cuts the connection."""
        self.keep_broker = False

    def close(self) -> None:
        self.to_client.close()
        if not self.keep_broker:
            self.to_broker.close()


class KafkaProxy:
    """Listens on 127.0.0.1, passes on to `target`. `port` is known after `start`."""

    def __init__(self, target: tuple[str, int], port: int, host: str = "127.0.0.1") -> None:
        self.target, self.host, self.port = target, host, port
        self.seen: Counter[int] = Counter()
        """API key -> requests that passed or were kept."""
        self._holds: list[Held] = []
        self._drops: list[Match] = []
        self._cut_answers: list[Match] = []
        self._calls: list[tuple[Match, Callable[[], None]]] = []
        self._links: set[_Link] = set()
        self._delay = {"up": 0.0, "down": 0.0}
        self._refusing = False
        self._rejected: Match = lambda _: False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """`host:port` for clients."""
        return f"{self.host}:{self.port}"

    # ------------------------------------------------------------------ faults
    def hold(self, match: Match, *, cut: bool) -> Held:
        """Keep back the next request that matches."""
        held = Held(match, cut, _proxy=self)
        self._holds.append(held)
        return held

    def drop(self, match: Match) -> None:
        """The next request that matches never reaches the broker, and is not answered."""
        self._drops.append(match)

    def cut_answer(self, match: Match) -> None:
        """The broker handles the next request that matches; instead of its answer the client's connection is cut."""
        self._cut_answers.append(match)

    def call(self, match: Match, what: Callable[[], None]) -> None:
        """When the next request that matches has been passed on, call (in a thread; other traffic goes on)."""
        self._calls.append((match, what))

    def forget(self) -> None:
        """Rules that nothing has matched yet hold no more."""
        for rules in (self._holds, self._drops, self._cut_answers, self._calls):
            rules.clear()

    def delay(self, up: float = 0.0, down: float = 0.0) -> None:
        """Seconds that each request, and each answer, takes longer from now on."""
        self._delay = {"up": up, "down": down}

    def stall(self, *, up: bool = False, down: bool = False) -> None:
        """Nothing passes in that direction; what comes is kept. `stall()` lets it go on, in order."""
        self._loop.call_soon_threadsafe(lambda: (self._gate("up", up), self._gate("down", down)))

    def cut(self) -> None:
        """Cut every connection."""
        self._loop.call_soon_threadsafe(lambda: [link.close() for link in list(self._links)])

    def refuse(self, refusing: bool) -> None:
        """New connections are cut at once."""
        self._refusing = refusing

    def reject(self, match: Match) -> None:
        """From now on every request that matches cuts its connection; it does not reach the broker."""
        self._rejected = match

    # ------------------------------------------------------------------ life
    def start(self) -> None:
        """Listen."""
        self._thread.start()
        self.run(self._listen(), 10)

    def stop(self) -> None:
        """Close everything."""
        self.run(self._close(), 10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T], timeout: float) -> T:
        """Result of a coroutine in the proxy's thread."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(timeout)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    async def _listen(self) -> None:
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._gate("up", False)
        self._gate("down", False)
        self._server = await asyncio.start_server(self._accept, self.host, self.port)

    def _gate(self, direction: str, closed: bool) -> None:
        gate = self._open[direction]
        (gate.clear if closed else gate.set)()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.keep_broker = False
            link.close()
        tasks = [t for t in self._tasks if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._refusing:
            writer.close()
            return
        try:
            broker = await asyncio.open_connection(*self.target)
        except OSError:
            writer.close()
            return
        link = _Link((reader, writer), broker)
        self._links.add(link)
        pumps = [asyncio.create_task(self._pump(side, link)) for side in (self._up, self._down)]
        try:
            # A held link lives on without its client, until its answer has come.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if link.keep_broker:
                await asyncio.wait(pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            link.keep_broker = False
            link.close()
            self._links.discard(link)

    async def _pump(self, side: Callable[[_Link], Coroutine[Any, Any, None]], link: _Link) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await side(link)

    async def _up(self, link: _Link) -> None:
        while True:
            request = Request.parse(await _frame(link.from_client))
            self.seen[request.api] += 1
            if self._rejected(request):
                link.to_client.close()
                return
            if self._delay["up"]:
                await asyncio.sleep(self._delay["up"])
            await self._open["up"].wait()
            if (held := _take(self._holds, lambda h, r=request: h.match(r))) is not None:
                released = asyncio.Event()
                self._hold(held, link, request, released)
                if held.cut:
                    return  # the client is gone; the broker's side stays for the release
                await released.wait()
                continue
            if _take(self._drops, lambda match, r=request: match(r)) is not None:
                continue
            if _take(self._cut_answers, lambda match, r=request: match(r)) is not None:
                link.cut_at.add(request.correlation)
            link.to_broker.write(request.frame)
            await link.to_broker.drain()
            if (called := _take(self._calls, lambda c, r=request: c[0](r))) is not None:
                await asyncio.to_thread(called[1])

    def _hold(self, held: Held, link: _Link, request: Request, released: asyncio.Event) -> None:
        answer: asyncio.Future[bytes] = self._loop.create_future()

        async def send() -> bytes:
            link.waiting[request.correlation] = answer
            link.to_broker.write(request.frame)
            await link.to_broker.drain()
            released.set()
            return await answer

        link.keep_broker = True
        held.request, held._send = request, send
        if held.cut:
            link.to_client.close()
        held.caught.set()

    async def _down(self, link: _Link) -> None:
        while True:
            answer = await _frame(link.from_broker)
            (correlation,) = struct.unpack_from(">i", answer, 4)
            if self._delay["down"]:
                await asyncio.sleep(self._delay["down"])
            await self._open["down"].wait()
            if correlation in link.cut_at:
                link.to_client.transport.abort()
                return
            if (wanted := link.waiting.pop(correlation, None)) is not None:
                wanted.set_result(answer)
            if not link.to_client.is_closing():
                link.to_client.write(answer)
                await link.to_client.drain()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(int.from_bytes(size, "big"))


def _take(rules: list[T], applies: Callable[[T], bool]) -> T | None:
    """The first rule that applies; it is used up."""
    for rule in rules:
        if applies(rule):
            rules.remove(rule)
            return rule
    return None
