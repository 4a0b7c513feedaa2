"""What a socket gives, handed on as it came: asyncio's reader copies every byte three times."""

import asyncio
from collections import deque


class ChunkReader(asyncio.StreamReader):
    """Reads lines as any other, until `read` is called first; from then on whole chunks.

    `limit`: with twice as many bytes waiting, the socket is not read any more.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit=limit)
        self._chunks: deque[bytes] | None = None
        self._waiting_bytes = 0

    def feed_data(self, data: bytes) -> None:
        """The socket gave this."""
        if self._chunks is None or not data:
            super().feed_data(data)
            return
        self._chunks.append(bytes(data))  # which are bytes already
        self._waiting_bytes += len(data)
        self._wakeup_waiter()
        if self._transport is not None and not self._paused and self._is_full(2):
            self._transport.pause_reading()
            self._paused = True

    async def read(self, _size: int = -1) -> bytes:
        """What came at once, however long; empty at the end."""
        if self._exception is not None:
            raise self._exception
        if self._chunks is None:
            self._chunks = deque([bytes(self._buffer)] if self._buffer else [])
            self._waiting_bytes = len(self._buffer)
            self._buffer.clear()
        if not self._chunks and not self._eof:
            await self._wait_for_data("read")
        if not self._chunks:
            return b""
        chunk = self._chunks.popleft()
        self._waiting_bytes -= len(chunk)
        if self._transport is not None and self._paused and not self._is_full(1):
            self._transport.resume_reading()
            self._paused = False
        return chunk

    def at_eof(self) -> bool:
        """Whether nothing is left, and nothing more can come."""
        return super().at_eof() and not self._chunks

    def _is_full(self, times: int) -> bool:
        return self._waiting_bytes > times * self._limit


async def connect(
    host: str | None, port: int | None, limit: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As `asyncio.open_connection`, with such a reader."""
    loop = asyncio.get_running_loop()
    reader = ChunkReader(limit)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.create_connection(lambda: protocol, host, port)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
