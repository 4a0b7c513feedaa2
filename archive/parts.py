"""Large values on their way in: read from the stream of parts, verified, removed."""

import asyncio

import structlog

from archive import frame
from schemas.cache import PARTS_IN_FLIGHT, Evicted, part_count, part_range
from schemas.protocols import PartStream, PublishError

log = structlog.get_logger()

STREAM = "EVICTION_PARTS"


class Parts:
    """The parts of evicted values; a value is received into one buffer of its size."""

    def __init__(self, stream: PartStream) -> None:
        self._stream = stream

    async def read(self, manifest: Evicted) -> bytearray:
        """The value, its size and digest as the manifest says.

        Raises:
            ValueError: a part is gone or has another size, or the digest is wrong.
            PublishError: the server does not answer.
        """
        size_bytes = manifest.size_bytes
        if manifest.parts != part_count(size_bytes):
            raise ValueError(f"{manifest.parts} parts do not make {size_bytes} bytes")
        value = bytearray(size_bytes)
        parts = iter(range(manifest.parts))

        async def read_some() -> None:
            for part in parts:
                payload = await self._stream.read_last(STREAM, f"{_subject(manifest)}.{part}")
                first, end = part_range(part, size_bytes)
                if payload is None:
                    raise ValueError(f"part {part} of {manifest.parts} is gone")
                if len(payload) != end - first:
                    raise ValueError(f"part {part} has {len(payload)} bytes, not {end - first}")
                value[first:end] = payload

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(PARTS_IN_FLIGHT):
                    group.create_task(read_some())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        await asyncio.to_thread(frame.check_value, manifest, value)
        return value

    async def remove(self, manifest: Evicted) -> None:
        """Remove them: the value is settled. What fails is left to the stream's age."""
        try:
            await self._stream.purge(STREAM, f"{_subject(manifest)}.*")
        except PublishError as error:
            log.warning("eviction_parts_not_removed", error=str(error))


def _subject(manifest: Evicted) -> str:
    return f"evicted_part.{manifest.namespace}.{manifest.eviction}"
