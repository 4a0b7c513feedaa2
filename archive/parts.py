"""Large values on their way in: read part by part, from the stream of parts, verified, removed."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable

import structlog

from archive.codec import SAMPLE_PIECE_BYTES, SAMPLE_PIECES
from archive.verified import verified
from schemas.cache import PARTS_IN_FLIGHT, Evicted, part_count, part_range
from schemas.protocols import PartStream, PublishError

log = structlog.get_logger()

STREAM = "EVICTION_PARTS"


class PartedValue:
    """A value in parts, of which a few are in memory at once.

    All calls raise ValueError where a part is gone or has another size, and what `read` raises:
    of the stream's PublishError, where the server does not answer.
    """

    def __init__(self, read: Callable[[int], Awaitable[bytes | None]], manifest: Evicted) -> None:
        """`read` gives a part by its number; None: it is gone."""
        self._read = read
        self._manifest = manifest
        self._sampled: dict[int, bytes] = {}

    async def sample(self) -> bytes:
        """The beginnings of some parts, by which to choose a codec."""
        last = self._manifest.parts - 1
        wanted = {last * number // (SAMPLE_PIECES - 1) for number in range(SAMPLE_PIECES)}
        for part in sorted(wanted):
            self._sampled[part] = await self._part(part)
        return b"".join(part[:SAMPLE_PIECE_BYTES] for part in self._sampled.values())

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The value in order, again each time; at its end ValueError where its digest is wrong."""
        manifest = self._manifest
        if manifest.parts != part_count(manifest.size_bytes):
            raise ValueError(f"{manifest.parts} parts do not make {manifest.size_bytes} bytes")
        async with contextlib.aclosing(verified(self._read_all(), manifest.digest)) as pieces:
            async for piece in pieces:
                yield piece

    async def _read_all(self) -> AsyncGenerator[bytes, None]:
        count = self._manifest.parts
        coming: deque[asyncio.Task[bytes]] = deque()
        try:
            for part in range(count):
                for ahead in range(part + len(coming), min(part + PARTS_IN_FLIGHT, count)):
                    coming.append(asyncio.create_task(self._part(ahead)))
                piece = await coming[0]
                coming.popleft()
                yield piece
        finally:
            for task in coming:
                task.cancel()
            await asyncio.gather(*coming, return_exceptions=True)

    async def _part(self, part: int) -> bytes:
        if part in self._sampled:
            return self._sampled.pop(part)
        first, end = part_range(part, self._manifest.size_bytes)
        payload = await self._read(part)
        if payload is None:
            raise ValueError(f"part {part} of {self._manifest.parts} is gone")
        if len(payload) != end - first:
            raise ValueError(f"part {part} has {len(payload)} bytes, not {end - first}")
        return payload


class Parts:
    """The parts of evicted values."""

    def __init__(self, stream: PartStream) -> None:
        self._stream = stream

    def value(self, manifest: Evicted) -> PartedValue:
        """The value of a manifest that has parts."""

        def read(part: int) -> Awaitable[bytes | None]:
            return self._stream.read_last(STREAM, f"{_subject(manifest)}.{part}")

        return PartedValue(read, manifest)

    async def remove(self, manifest: Evicted) -> None:
        """Remove them: the value is settled. What fails is left to the stream's age."""
        try:
            await self._stream.purge(STREAM, f"{_subject(manifest)}.*")
        except PublishError as error:
            log.warning("eviction_parts_not_removed", error=str(error))


def _subject(manifest: Evicted) -> str:
    return f"evicted_part.{manifest.namespace}.{manifest.eviction}"
