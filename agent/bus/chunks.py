"""What a socket gives, handed on as it came: asyncio's reader copies every byte three times."""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import SupportsIndex, cast


class ChunkReader(asyncio.StreamReader):
    """Reads lines, and whole chunks.

    `limit`: with twice as many bytes waiting, the socket is not read any more.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit=limit)
        self._socket: asyncio.ReadTransport | None = None
        self._is_paused = self._has_ended = False
        self._limit_bytes = limit
        self._chunks: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._news = asyncio.Event()

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        """What is to be stopped while nobody reads."""
        super().set_transport(transport)
        self._socket = cast(asyncio.ReadTransport, transport)

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        """The socket gave this."""
        chunk = bytes(data)  # which they are already
        self._chunks.append(chunk)
        self._waiting_bytes += len(chunk)
        self._news.set()
        if self._socket is not None and not self._is_paused:
            self._is_paused = self._waiting_bytes > 2 * self._limit_bytes
            if self._is_paused:
                self._socket.pause_reading()

    def feed_eof(self) -> None:
        """It gives nothing any more."""
        self._has_ended = True
        self._news.set()

    def set_exception(self, exc: Exception) -> None:
        """It failed."""
        super().set_exception(exc)
        self._news.set()

    async def read(self, _size: int = -1) -> bytes:
        """What came at once, however long; empty at the end."""
        while not self._chunks:
            error = self.exception()
            if error is not None:
                raise error
            if self._has_ended:
                return b""
            self._news.clear()
            await self._news.wait()
        chunk = self._chunks.popleft()
        self._waiting_bytes -= len(chunk)
        if self._is_paused and self._waiting_bytes <= self._limit_bytes:
            self._is_paused = False
            if self._socket is not None:
                self._socket.resume_reading()
        return chunk

    async def readline(self) -> bytes:
        """Up to and with the next line break, or what there is at the end."""
        line = b""
        while chunk := await self.read():
            begin, end, rest = chunk.partition(b"\n")
            line += begin + end
            if rest:
                self._chunks.appendleft(rest)
                self._waiting_bytes += len(rest)
            if end:
                break
        return line

    def at_eof(self) -> bool:
        """Whether nothing is left, and nothing more can come."""
        return self._has_ended and not self._chunks


async def connect(
    host: str, port: int, limit: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As `asyncio.open_connection`, with such a reader."""
    loop = asyncio.get_running_loop()
    reader = ChunkReader(limit)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.create_connection(lambda: protocol, host, port)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
