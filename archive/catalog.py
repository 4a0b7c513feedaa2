"""What each object of the store holds, by its footer: from the index bucket, or the object."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping

import structlog

from archive import frame, segment
from archive.frame import ArchiveObjectError
from archive.index_bucket import IndexBucket
from archive.index_entry import IndexEntry, record_of
from archive.store import ObjectStore, StoredObject, StoreError
from schemas.protocols import PublishError

log = structlog.get_logger()

AT_ONCE = 256
HEAD_BYTES = 4096


class Catalog:
    """The entries of each object, verified by their checksum wherever they are read from.

    What the bucket has of an object is not read from the object; what it lacks, or has wrong, is
    read there, by its footer and a ranged read, and put into the bucket. A segment without a
    readable footer gives the entries that are whole in it. Damaged objects are put aside, foreign
    ones left alone; `unreadable` counts both.
    """

    def __init__(self, store: ObjectStore, bucket: IndexBucket | None = None) -> None:
        self._store = store
        self._bucket = bucket
        self.unreadable = 0
        self._ignored: set[str] = set()

    @property
    def bucket_failures(self) -> int:
        """Calls of the bucket that failed."""
        return 0 if self._bucket is None else self._bucket.failed_total

    async def stored(self, name: str, footer: bytes) -> None:
        """An object with this footer was stored."""
        if self._bucket is not None:
            await self._bucket.put(name, footer)

    async def removed(self, name: str) -> None:
        """The object was removed."""
        if self._bucket is not None:
            await self._bucket.remove(name)

    async def recognises(self) -> bool:
        """Whether the store has an object that the bucket has a record of."""
        if self._bucket is None or not (records := await self._bucket.records()):
            return False
        return any(one.name in records for one in await self._store.list_objects())

    async def read(
        self, is_known: Callable[[str], bool], on_progress: Callable[[int, int], None]
    ) -> AsyncIterator[tuple[StoredObject, list[IndexEntry]]]:
        """Every object of the store that is not known, and its entries.

        Raises:
            StoreError: the store cannot be read.
        """
        listed = await self._store.list_objects()
        unknown = [one for one in listed if not is_known(one.name)]
        unknown = [one for one in unknown if one.name not in self._ignored]
        if not unknown:
            return
        records = {} if self._bucket is None else await self._bucket.records()
        await self._remove_stale(records)
        async for found, entries in self._read_all(unknown, records, on_progress):
            if entries is not None:
                yield found, entries

    async def rebuild(self, on_progress: Callable[[int, int], None]) -> Mapping[str, int]:
        """Write the bucket anew from the objects alone; how many objects and entries they hold.

        Raises:
            StoreError: the store cannot be read, or the bucket not made or written.
        """
        counts: Counter[str] = Counter(objects=0, entries=0)
        failed_before = self.bucket_failures
        await self._make_bucket()
        listed = await self._store.list_objects()
        async for _, entries in self._read_all(listed, {}, on_progress):
            if entries is not None:
                counts["objects"] += 1
                counts["entries"] += len(entries)
        if self._bucket is not None:
            counts["removed"] = await self._remove_stale(await self._bucket.records())
            failed = self.bucket_failures - failed_before
            if failed:
                raise StoreError(
                    f"{failed} records of {counts['objects']} objects are not in the index bucket "
                    f"({self._bucket.last_error}); each start reads those objects"
                )
        return counts

    async def _make_bucket(self) -> None:
        if self._bucket is not None:
            try:
                await self._bucket.make()
            except PublishError as error:
                raise StoreError(f"the index bucket cannot be made: {error}") from error

    async def put_aside(self, name: str, error: ArchiveObjectError) -> None:
        """Keep a damaged object out of the way; of a segment the rest may still be well."""
        self.unreadable += 1
        log.error("archived_object_unreadable", name=name, reason=error.reason)
        if error.foreign:
            self._ignored.add(name)
        elif not segment.seal_of(name):
            await self._store.quarantine(name)

    async def _remove_stale(self, records: Mapping[str, bytes]) -> int:
        """Remove those of `records`, just read, whose objects are gone; how many there were."""
        there = {one.name for one in await self._store.list_objects()}
        stale = records.keys() - there
        for name in stale:
            await self.removed(name)
        return len(stale)

    async def _read_all(
        self,
        objects: list[StoredObject],
        records: Mapping[str, bytes],
        on_progress: Callable[[int, int], None],
    ) -> AsyncIterator[tuple[StoredObject, list[IndexEntry] | None]]:
        for first in range(0, len(objects), AT_ONCE):
            batch = objects[first : first + AT_ONCE]
            try:
                async with asyncio.TaskGroup() as group:
                    reading = [
                        group.create_task(self._entries(one, records.get(one.name)))
                        for one in batch
                    ]
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
            for found, task in zip(batch, reading, strict=True):
                yield found, task.result()
            on_progress(first + len(batch), len(objects))

    async def _entries(self, found: StoredObject, record: bytes | None) -> list[IndexEntry] | None:
        """The object's entries; None: it is not there any more, or not readable."""
        if record is not None:
            try:
                return segment.read_record(found.name, record, found.object_bytes)
            except ArchiveObjectError as error:
                log.warning("archive_index_wrong", name=found.name, reason=error.reason)
            entries = _of_record(found.name, record)
            if entries is not None:
                # What it deletes and replaces stays so, and what was cut off is told as damaged.
                self.unreadable += 1
                return entries
        try:
            if segment.seal_of(found.name):
                return await self._of_segment(found)
            return await self._of_single(found)
        except ArchiveObjectError as error:
            await self.put_aside(found.name, error)
            return None

    async def _of_segment(self, found: StoredObject) -> list[IndexEntry] | None:
        name, size = found.name, found.object_bytes
        tail = await self._store.get_range(name, max(0, size - segment.TAIL_BYTES), size)
        try:
            if tail is not None and segment.footer_bytes(tail) > len(tail):
                first = max(0, size - segment.footer_bytes(tail))
                tail = await self._store.get_range(name, first, size)
            if tail is None:
                return None
            entries = segment.read_footer(name, tail)
            await self.stored(name, tail[-segment.footer_bytes(tail) :])
            return entries
        except ArchiveObjectError as error:
            if error.foreign:
                raise
            log.error("archived_footer_unreadable", name=name, reason=error.reason)
        return await self._of_torn(name)

    async def _of_torn(self, name: str) -> list[IndexEntry] | None:
        content = await self._store.get(name)
        if content is None:
            return None
        self.unreadable += 1
        entries = await asyncio.to_thread(lambda: list(segment.walk(name, content)))
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
        entry = segment.read_alone(found.name, start, found.object_bytes)
        await self.stored(found.name, segment.footer(found.name, [record_of(entry)]))
        return [entry]


def _of_record(name: str, record: bytes) -> list[IndexEntry] | None:
    """What a segment of another length held, by its own record; None: that is not readable."""
    if not segment.seal_of(name):
        return None
    try:
        return segment.read_footer(name, record)
    except ArchiveObjectError:
        return None
