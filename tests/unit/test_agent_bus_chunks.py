"""What a socket gives, handed on as it came."""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest

from agent.bus.chunks import ChunkReader, connect


class Socket:
    """A transport that only notes whether it is read."""

    def __init__(self) -> None:
        self.is_read = True

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


@pytest.fixture
async def socket() -> Socket:
    return Socket()


@pytest.fixture
async def reader(socket: Socket) -> ChunkReader:
    made = ChunkReader(limit=10)
    made.set_transport(cast(asyncio.Transport, socket))
    return made


async def test_chunks_are_given_uncopied_and_in_order(reader: ChunkReader) -> None:
    chunks = [b"one", b"two"]
    reader.feed_data(b"zero")

    first = await reader.read(1)
    for chunk in chunks:
        reader.feed_data(chunk)
    given = [await reader.read(1) for _ in chunks]

    assert first == b"zero"
    assert [id(chunk) for chunk in given] == [id(chunk) for chunk in chunks]


async def test_what_stands_behind_a_line_is_read_next(reader: ChunkReader) -> None:
    reader.feed_data(b"INFO {}\r\nPI")

    assert await reader.readline() == b"INFO {}\r\n"
    assert await reader.read(100) == b"PI"


async def test_a_line_may_come_in_several_chunks(reader: ChunkReader) -> None:
    for chunk in (b"IN", b"FO", b" {}\r\n", b"+OK"):
        reader.feed_data(chunk)
    reader.feed_eof()

    assert (await reader.readline(), await reader.readline()) == (b"INFO {}\r\n", b"+OK")


async def test_who_waits_gets_what_comes(reader: ChunkReader) -> None:
    reading = asyncio.create_task(reader.read(100))
    await asyncio.sleep(0)
    reader.feed_data(b"late")

    assert await reading == b"late"


async def test_the_end_comes_behind_what_is_left(reader: ChunkReader) -> None:
    reading = asyncio.create_task(reader.read(100))
    await asyncio.sleep(0)
    reader.feed_data(b"first")
    await reading
    reader.feed_data(b"last")
    reader.feed_eof()
    early = reader.at_eof()

    assert (early, await reader.read(100)) == (False, b"last")
    assert (await reader.read(100), reader.at_eof()) == (b"", True)


async def test_a_lost_connection_is_raised(reader: ChunkReader) -> None:
    reader.set_exception(ConnectionResetError())

    with pytest.raises(ConnectionResetError):
        await reader.read(100)


async def test_a_socket_is_read_while_there_is_room(reader: ChunkReader, socket: Socket) -> None:
    reader.feed_data(b"x")
    await reader.read(1)
    reader.feed_data(b"x" * 20)
    at_limit = socket.is_read
    reader.feed_data(b"y")
    above = socket.is_read
    await reader.read(1)
    below = socket.is_read

    assert (at_limit, above, below) == (True, False, True)


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(100_000))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_connection_reads_so(echo: int) -> None:
    reader, writer = await connect("127.0.0.1", echo, 1000)
    writer.write(b"z" * 100_000)

    come = b""
    while piece := await reader.read(10):
        come += piece
    writer.close()

    assert come == b"z" * 100_000
