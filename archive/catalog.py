"""What each object of the store holds, by its footer."""

import asyncio
from collections.abc import AsyncIterator, Callable

import structlog

from archive import frame, segment
from archive.frame import ArchiveObjectError
from archive.index_entry import IndexEntry
from archive.store import ObjectStore, StoredObject

log = structlog.get_logger()

AT_ONCE = 256
HEAD_BYTES = 4096


class Catalog:
    """Reads the entries of objects: of a segment by ranged reads of its footer.

    A segment without a readable footer gives the entries that are whole in it. Damaged objects
    are put aside, foreign ones left alone; `unreadable` counts both.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.unreadable = 0
        self._ignored: set[str] = set()

    async def stored(self, name: str, footer: bytes) -> None:
        """A segment with this footer was stored."""

    async def read(
        self, is_known: Callable[[str], bool], on_progress: Callable[[int, int], None]
    ) -> AsyncIterator[tuple[StoredObject, list[IndexEntry]]]:
        """Every object of the store that is not known, and its entries.

        Raises:
            StoreError: the store cannot be read.
        """
        listed = [
            found
            for found in await self._store.list_objects()
            if not is_known(found.name) and found.name not in self._ignored
        ]
        for first in range(0, len(listed), AT_ONCE):
            batch = listed[first : first + AT_ONCE]
            for found, entries in zip(batch, await self._read_all(batch), strict=True):
                if entries is not None:
                    yield found, entries
            on_progress(first + len(batch), len(listed))

    async def entries(self, found: StoredObject) -> list[IndexEntry] | None:
        """The object's entries; None: it is not there any more, or not readable.

        Raises:
            StoreError: the store cannot be read.
        """
        try:
            if segment.seal_of(found.name):
                return await self._of_segment(found)
            return await self._of_single(found)
        except ArchiveObjectError as error:
            await self.put_aside(found.name, error)
            return None

    async def put_aside(self, name: str, error: ArchiveObjectError) -> None:
        """Keep a damaged object out of the way; of a segment the rest may still be well."""
        self.unreadable += 1
        log.error("archived_object_unreadable", name=name, reason=error.reason)
        if error.foreign:
            self._ignored.add(name)
        elif not segment.seal_of(name):
            await self._store.quarantine(name)

    async def _read_all(self, batch: list[StoredObject]) -> list[list[IndexEntry] | None]:
        try:
            async with asyncio.TaskGroup() as group:
                reading = [group.create_task(self.entries(found)) for found in batch]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in reading]

    async def _of_segment(self, found: StoredObject) -> list[IndexEntry] | None:
        name, size = found.name, found.object_bytes
        tail = await self._store.get_range(name, max(0, size - segment.TAIL_BYTES), size)
        try:
            if tail is not None and segment.footer_bytes(tail) > len(tail):
                first = max(0, size - segment.footer_bytes(tail))
                tail = await self._store.get_range(name, first, size)
            return None if tail is None else segment.read_footer(name, tail)
        except ArchiveObjectError as error:
            if error.foreign:
                raise
            log.error("archived_footer_unreadable", name=name, reason=error.reason)
        content = await self._store.get(name)
        if content is None:
            return None
        entries = await asyncio.to_thread(lambda: list(segment.walk(name, content)))
        self.unreadable += 1
        if not entries:
            await self._store.quarantine(name)
            return None
        return entries

    async def _of_single(self, found: StoredObject) -> list[IndexEntry] | None:
        start = await self._store.get_range(found.name, 0, HEAD_BYTES)
        if start is not None and len(start) < frame.payload_offset(start):
            start = await self._store.get_range(found.name, 0, frame.payload_offset(start))
        if start is None:
            return None
        return [segment.read_alone(found.name, start, found.object_bytes)]
