"""Speaks the NATS protocol by hand, to send and to answer what no proper peer would."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

TURNS = 3
"""Of the event loop, after which a connection that the kernel gave us is one of asyncio's."""


async def send_raw(port: int, *messages: bytes) -> None:
    """Connect without a login, send `messages` as they are, return once the server took them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(5):
        await reader.readline()
        writer.write(b'CONNECT {"verbose":false,"headers":true,"protocol":1}\r\n')
        writer.writelines(messages)
        writer.write(b"PING\r\n")
        answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    assert answer == b"PONG\r\n", answer


def with_headers(subject: bytes, headers: bytes, payload: bytes = b"x") -> bytes:
    """A message whose header block is `headers`, whatever that is."""
    size = len(headers)
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (subject, size, size + len(payload), headers, payload)


@contextlib.asynccontextmanager
async def impostor(
    play: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """A listener on a loopback port that treats each connection as `play` does; yields the port.

    At the end every connection is cut, those too whose `play` has not begun.
    """
    connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def treat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                await play(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(treat(reader, writer))
        connections[task] = writer
        task.add_done_callback(connections.pop)

    server = await asyncio.start_server(accept, "127.0.0.1", port, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        tasks = list(connections)
        for task, writer in list(connections.items()):
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
