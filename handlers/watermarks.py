"""Where the slots' watermarks are kept: in a bucket, a key for each."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from handlers.slots import Watermark
from schemas.protocols import Bucket

log = structlog.get_logger()


class Watermarks:
    """Loads and saves them. Each save says what it follows: of two owners one finds out."""

    def __init__(self, state: Bucket, counters: Counter[str]) -> None:
        self._state = state
        self._counters = counters

    async def load(
        self, index: int, make_fresh: Callable[[], Awaitable[Watermark]]
    ) -> tuple[Watermark, int]:
        """The slot's, with the revision that the next save follows.

        A fresh one, of where the stream is now, where there is none or none that can be read.

        Raises:
            PublishError: the bucket does not answer.
            RevisionConflictError: somebody else made it just now.
        """
        found = await self._state.get(_key(index))
        fresh = await make_fresh()  # not before: one saved meanwhile would be ahead of it
        if found is None:
            return fresh, await self._state.create(_key(index), fresh.encode())
        try:
            watermark = Watermark.decode(found[0])
        except ValueError as error:
            # Without it nobody could ever own this slot again.
            self._counters["watermarks_unreadable_total"] += 1
            log.error("watermark_unreadable", slot=index, error=str(error))
            return fresh, found[1]
        if watermark.sequence > fresh.sequence:
            # The stream was made anew and counts from 1 again: keep what outlives the window.
            log.warning("metrics_stream_made_anew", slot=index, sequence=fresh.sequence)
            return msgspec.structs.replace(fresh, snapshots=watermark.snapshots), found[1]
        return watermark, found[1]

    async def save(self, index: int, watermark: Watermark, revision: int) -> int:
        """Save it after that revision; returns its own.

        Raises:
            RevisionConflictError: somebody else saved.
            PublishError: it may not be saved.
        """
        # In a thread: deflating megabytes takes tens of milliseconds.
        encoded = await asyncio.to_thread(watermark.encode)
        return await self._state.update(_key(index), encoded, revision)


def _key(index: int) -> str:
    return f"handlers.slot.{index}"
