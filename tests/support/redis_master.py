"""Plays a Redis master in the test's own event loop, for what a real one does only in bad luck."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from sources.redis.endpoint import RedisEndpoint

MARK = b"0123456789abcdef0123456789abcdef01234567"


class Caller:
    """The connection of one replica."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader, self.writer, self.number = reader, writer, number
        """`number`: how many came before."""

    async def command(self) -> list[str]:
        """The next command."""
        count = int((await self.reader.readuntil(b"\n"))[1:])
        words = []
        for _ in range(count):
            size = int((await self.reader.readuntil(b"\n"))[1:])
            words.append((await self.reader.readexactly(size + 2))[:-2].decode())
        return words

    async def say(self, *lines: bytes) -> None:
        """Send as it is."""
        self.writer.write(b"".join(lines))
        await self.writer.drain()

    async def shake_hands(self) -> None:
        """Up to PSYNC, which remains to be answered."""
        answers = {"AUTH": b"+OK\r\n", "PING": b"+PONG\r\n", "REPLCONF": b"+OK\r\n"}
        while (words := await self.command())[0] != "PSYNC":
            await self.say(answers[words[0]])

    async def dump(self, rdb: bytes, *, diskless: bool = False, of: int | None = None) -> None:
        """Answer PSYNC; `of`: bytes after which it breaks off."""
        await self.say(b"+FULLRESYNC 8c3a9a1d 14\r\n", b"$EOF:%b\r\n" % MARK if diskless else b"$%d\r\n" % len(rdb))
        await self.say(rdb[:of])
        if of is None and diskless:
            await self.say(MARK)


Script = Callable[[Caller], Awaitable[None]]


@asynccontextmanager
async def master(script: Script, port: int = 0) -> AsyncIterator[RedisEndpoint]:
    """Runs `script` for each connection, and closes it behind."""
    tasks = set[asyncio.Task[None]]()
    failed = list[BaseException]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await script(Caller(reader, writer, len(tasks) - 1))
            writer.close()  # sends what is left first
            with suppress(OSError):
                await writer.wait_closed()
        except (AssertionError, KeyError) as exc:
            failed.append(exc)
        except asyncio.CancelledError:
            pass  # the end of the test; asyncio 3.11 would complain of a task that says so
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield RedisEndpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert not failed
