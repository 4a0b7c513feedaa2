"""A TCP proxy that refuses or cuts connections on command."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from tests.support.wire import impostor


class TcpProxy:
    """Passes bytes on to `port` of this machine; an async context manager.

    `is_refusing`: new connections are closed at once. `answer_limit_bytes`: each connection is
    cut after so many bytes of answers.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.is_refusing = False
        self.answer_limit_bytes: int | None = None
        self._port = 0
        self._open = contextlib.AsyncExitStack()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        self._port = await self._open.enter_async_context(impostor(self._serve))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._open.aclose()

    def refuse(self) -> None:
        """The server is away: open connections break, new ones too."""
        self.is_refusing = True
        self.cut()

    def accept(self) -> None:
        """It is back."""
        self.is_refusing = False

    def cut(self) -> None:
        """Break every open connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_refusing:
            return
        pair = {writer}
        self._writers.add(writer)
        try:
            target_reader, target = await asyncio.open_connection("127.0.0.1", self._target)
            pair.add(target)
            self._writers.add(target)
            await asyncio.gather(
                self._pass(reader, target, None),
                self._pass(target_reader, writer, self.answer_limit_bytes),
            )
        finally:
            for one in pair:
                one.transport.abort()
            self._writers -= pair

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, limit: int | None
    ) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if limit is not None and passed + len(data) > limit:
                    sink.write(data[: limit - passed])
                    await sink.drain()
                    break
                passed += len(data)
                sink.write(data)
                await sink.drain()
        sink.close()
