"""An HTTP server of one page on a real socket, and the captured pages."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from tests.support.wire import impostor

CAPTURES = Path(__file__).parents[1] / "captures" / "engines"


def capture(name: str) -> bytes:
    """The page `name` of tests/captures/engines."""
    return (CAPTURES / f"{name}.prom").read_bytes()


class MetricsServer:
    """Answers every request with `body`; `requests` has the head of each. Change it at will."""

    def __init__(self, body: bytes = b"") -> None:
        self.body = body
        self.status = "200 OK"
        self.content_type = "text/plain; version=0.0.4; charset=utf-8"
        self.headers: dict[str, str] = {}
        self.requests: list[str] = []
        self.port = 0
        self.is_tls = False
        self.answers = asyncio.Event()
        self.answers.set()

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http{'s' if self.is_tls else ''}://localhost:{self.port}/metrics"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            await self.answers.wait()
            headers = {
                "Content-Type": self.content_type,
                "Content-Length": str(len(self.body)),
                **self.headers,
            }
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            writer.write(f"HTTP/1.1 {self.status}\r\n{head}\r\n".encode() + self.body)
            await writer.drain()

    @contextlib.asynccontextmanager
    async def serve(self, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[None]:
        """Listen on a loopback port."""
        self.is_tls = tls is not None
        async with impostor(self._answer, port, tls) as self.port:
            yield
