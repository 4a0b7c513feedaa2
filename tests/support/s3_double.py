"""An HTTP server that answers as an S3 server would that has the fault in question."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from types import TracebackType
from typing import Self

from tests.support.wire import impostor

Answer = bytes | None
"""A whole HTTP answer; None = close the connection without one."""


class S3Double:
    """Answers every request with what `answer(method, path, headers)` returns."""

    def __init__(
        self,
        answer: Callable[[str, str, dict[str, str]], Answer | Awaitable[Answer]],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._answer = answer
        self._tls = tls
        self._port = 0
        self._open = contextlib.AsyncExitStack()
        self.requests: list[str] = []
        self.at_once = 0
        self.most_at_once = 0

    @property
    def url(self) -> str:
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        self._port = await self._open.enter_async_context(impostor(self._serve, tls=self._tls))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._open.aclose()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await self._answer_one(reader, writer):
                pass

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await reader.readuntil(b"\r\n\r\n")
        first, *lines = request.decode().split("\r\n")
        method, path, _ = first.split(" ")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        await reader.readexactly(int(headers.get("content-length", "0")))
        self.requests.append(f"{method} {path}")
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            answer = self._answer(method, path, headers)
            if isinstance(answer, Awaitable):
                answer = await answer
        finally:
            self.at_once -= 1
        if answer is None:
            return False
        writer.write(answer)
        await writer.drain()
        return b"Connection: close" not in answer


def http(
    status: int,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    length: int | None = None,
    date: float | None = None,
) -> bytes:
    """An HTTP answer; `length` says more than there is, and the connection ends then."""
    lines = [f"HTTP/1.1 {status} Because", f"Date: {formatdate(date, usegmt=True)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    if length is not None:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body


def s3_error(
    status: int,
    code: str,
    message: str = "because",
    headers: Mapping[str, str] | None = None,
    *,
    date: float | None = None,
    more: str = "",
) -> bytes:
    """S3's way to say what is wrong."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f"<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>"
    )
    return http(status, body.encode(), headers, date=date)
