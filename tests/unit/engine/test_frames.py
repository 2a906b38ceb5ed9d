"""Reading answers off the socket: the same bytes as asyncio's StreamReader gives, whatever pieces they come in."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.engine.frames import FrameReader


class Transport(asyncio.Transport):
    """Says whether it was told to pause."""

    def __init__(self) -> None:
        super().__init__()
        self.going = asyncio.Event()
        self.going.set()

    @property
    def paused(self) -> bool:
        return not self.going.is_set()

    def pause_reading(self) -> None:
        self.going.clear()

    def resume_reading(self) -> None:
        self.going.set()


def made(limit: int = 16) -> tuple[FrameReader, Transport]:
    reader, transport = asyncio.StreamReader(limit=limit), Transport()
    FrameReader.take_over(reader)
    reader.set_transport(transport)
    assert isinstance(reader, FrameReader)
    return reader, transport


@given(pieces=st.lists(st.binary(max_size=40), max_size=30), cuts=st.lists(st.integers(0, 60), max_size=30))
def test_whatever_the_pieces_the_bytes_come_in_order(pieces: list[bytes], cuts: list[int]) -> None:
    async def read() -> None:
        reader, transport = made()
        text, at = b"".join(pieces), 0

        async def feed() -> None:
            for piece in pieces:
                await transport.going.wait()
                reader.feed_data(piece)
            reader.feed_eof()

        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            feeding = group.create_task(feed())
            for n in cuts:
                if at + n > len(text):
                    with pytest.raises(asyncio.IncompleteReadError) as end:
                        await reader.readexactly(n)
                    assert end.value.partial == text[at:]
                    break
                found = await reader.readexactly(n)
                assert found == text[at : at + n]
                assert type(found) is bytes
                at += n
            else:
                feeding.cancel()

    asyncio.run(read())


async def test_the_socket_pauses_when_more_is_held_than_anybody_waits_for_and_goes_on_when_it_is_asked_for() -> None:
    reader, transport = made(limit=16)
    reader.feed_data(b"x" * 32)
    assert not transport.paused
    reader.feed_data(b"y")
    assert transport.paused
    waiting = asyncio.ensure_future(reader.readexactly(1000))
    await asyncio.sleep(0)
    assert not transport.paused, "it waits for more than is held, and nothing would come"
    for _ in range(20):
        reader.feed_data(b"z" * 48)
        assert not transport.paused, "an answer longer than the limit is read in one go"
    reader.feed_data(b"z" * 7)
    assert len(await waiting) == 1000


async def test_a_reader_is_woken_once_for_an_answer() -> None:
    reader, _ = made()
    waiting = asyncio.ensure_future(reader.readexactly(3))
    await asyncio.sleep(0)
    reader.feed_data(b"a")
    first = reader._waiter  # type: ignore[attr-defined]
    reader.feed_data(b"b")
    assert reader._waiter is first  # type: ignore[attr-defined]
    reader.feed_data(b"cd")
    assert await waiting == b"abc"
    assert not reader.at_eof()


async def test_an_error_of_the_connection_reaches_the_reader() -> None:
    reader, _ = made()
    waiting = asyncio.ensure_future(reader.readexactly(3))
    await asyncio.sleep(0)
    reader.set_exception(ConnectionResetError("gone"))
    with pytest.raises(ConnectionResetError):
        await waiting
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
