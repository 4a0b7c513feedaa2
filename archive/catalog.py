"""What each object of the store holds, by its footer: from the index bucket, or the object."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import NamedTuple

import structlog

from archive import frame, recognition, segment
from archive.frame import ArchiveObjectError
from archive.index_bucket import IndexBucket
from archive.index_entry import IndexEntry, record_of
from archive.store import ObjectRefusedError, ObjectStore, StoredObject, StoreError
from archive.trouble import Trouble
from schemas.protocols import PublishError

log = structlog.get_logger()


class Reading(NamedTuple):
    """Of one object: None: it is not there any more, or nothing of it is readable.

    `aside` says why it, or a part of it, was put aside or left alone; empty: all is well.
    """

    entries: list[IndexEntry] | None
    aside: str = ""


class Rebuilt(NamedTuple):
    """What a rebuild found; `put_aside` are the objects left out, wholly or in part, and why."""

    counts: Mapping[str, int]
    put_aside: Mapping[str, str]


AT_ONCE = 256
HEAD_BYTES = 4096
LOOKS = 64
"""At refused objects in each sweep: each is a request or two."""
SAID = ("objects", "entries", "removed")
"""Counts that a rebuild always tells."""


class Catalog:
    """The entries of each object, verified by their checksum wherever they are read from.

    What the bucket has of an object is not read from the object; what it lacks, or has wrong, is
    read there, by its footer and a ranged read, and put into the bucket. A segment without a
    readable footer gives the entries that are whole in it. Damaged objects are put aside, foreign
    ones left alone; `unreadable` counts both. What the store refuses to give, though it gives
    others, is left out, and stands in `trouble` until it is readable or gone.
    """

    def __init__(
        self,
        store: ObjectStore,
        bucket: IndexBucket | None = None,
        before_removal: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`before_removal` is awaited before an object is put aside; where it raises it stays."""
        self._store = store
        self._before_removal = before_removal or _always
        self._bucket = bucket
        self.trouble = Trouble()
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
        self.trouble.removed(name)
        if self._bucket is not None:
            await self._bucket.remove(name)

    async def recognises(self) -> bool:
        """Whether the store holds what the bucket has records of, for the most part.

        Raises:
            StoreError: the store or the bucket cannot be read.
        """
        if self._bucket is None:
            return False
        failed_before = self.bucket_failures
        records = await self._bucket.records()
        if self.bucket_failures > failed_before:
            raise StoreError(f"the index bucket cannot be read: {self._bucket.last_error}")
        if not records:
            return False
        listed = await self._store.list_objects()
        # In a thread: it unpacks records, each of thousands of entries.
        return await asyncio.to_thread(recognition.agrees, listed, records)

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
        async for found, reading in self._read_all(unknown, records, on_progress):
            if reading.entries is not None:
                yield found, reading.entries

    async def look_again(
        self, is_known: Callable[[str], bool]
    ) -> AsyncIterator[tuple[StoredObject, list[IndexEntry]]]:
        """Try some of what was refused, the longest known first; what is not known, its entries.

        Raises:
            StoreError: the store cannot be read.
        """
        for name in list(self.trouble.unreadable)[:LOOKS]:
            try:
                found = await self._store.stat(name)
                if found is None:
                    self.trouble.can_read(name)
                elif is_known(name):
                    await self._store.get_range(name, 0, 1)
                    self.trouble.can_read(name)
                else:
                    reading = await self._reading(found, None)
                    if reading.entries is not None:
                        yield found, reading.entries
            except ObjectRefusedError as error:
                self.trouble.unreadable.pop(name, None)  # behind those that wait for their turn
                self.trouble.unreadable[name] = error.reason

    async def rebuild(self, on_progress: Callable[[int, int], None]) -> Rebuilt:
        """Write the bucket anew from the objects alone; how many objects and entries they hold.

        Damaged ones are put aside, foreign and refused ones left alone, and named.

        Raises:
            StoreError: the store cannot be read, or the bucket not made or written.
        """
        counts: Counter[str] = Counter(objects=0, entries=0)
        failed_before = self.bucket_failures
        await self._make_bucket()
        listed = await self._store.list_objects()
        put_aside: dict[str, str] = {}
        async for found, reading in self._read_all(listed, {}, on_progress):
            if reading.aside:
                counts["put_aside"] += 1
                put_aside[found.name] = reading.aside
            if reading.entries is not None:
                tombstones = sum(entry.tombstone for entry in reading.entries)
                counts["objects"] += 1
                counts["entries"] += len(reading.entries) - tombstones
                counts["tombstones"] += tombstones
        if self._bucket is not None:
            counts["removed"] = await self._remove_stale(await self._bucket.records())
            failed = self.bucket_failures - failed_before
            if failed:
                raise StoreError(
                    f"{failed} records of {counts['objects']} objects are not in the index bucket "
                    f"({self._bucket.last_error}); each start reads those objects"
                )
        return Rebuilt({name: n for name, n in counts.items() if n or name in SAID}, put_aside)

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
            await self._quarantine(name)

    async def _quarantine(self, name: str) -> None:
        await self._before_removal()
        try:
            await self._store.quarantine(name)
        except ObjectRefusedError as error:
            self.trouble.cannot_remove(error)
            self._ignored.add(name)

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
    ) -> AsyncIterator[tuple[StoredObject, Reading]]:
        for first in range(0, len(objects), AT_ONCE):
            batch = objects[first : first + AT_ONCE]
            try:
                async with asyncio.TaskGroup() as group:
                    reading = [
                        group.create_task(self._reading(one, records.get(one.name)))
                        for one in batch
                    ]
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
            for found, task in zip(batch, reading, strict=True):
                yield found, task.result()
            on_progress(first + len(batch), len(objects))

    async def _reading(self, found: StoredObject, record: bytes | None) -> Reading:
        if record is not None:
            try:
                return Reading(segment.read_record(found.name, record, found.object_bytes))
            except ArchiveObjectError as error:
                log.warning("archive_index_wrong", name=found.name, reason=error.reason)
                reason = error.reason
            entries = _of_record(found.name, record)
            if entries is not None:
                # What it deletes and replaces stays so, and what was cut off is told as damaged.
                self.unreadable += 1
                return Reading(entries, reason)
        try:
            of_one = self._of_segment if segment.seal_of(found.name) else self._of_single
            reading = await of_one(found)
        except ArchiveObjectError as error:
            await self.put_aside(found.name, error)
            return Reading(None, error.reason)
        except ObjectRefusedError as error:
            self.trouble.cannot_read(error)
            return Reading(None, f"cannot be read: {error.reason}")
        self.trouble.can_read(found.name)
        return reading

    async def _of_segment(self, found: StoredObject) -> Reading:
        name, size = found.name, found.object_bytes
        tail = await self._store.get_range(name, max(0, size - segment.TAIL_BYTES), size)
        try:
            if tail is not None and segment.footer_bytes(tail) > len(tail):
                first = max(0, size - segment.footer_bytes(tail))
                tail = await self._store.get_range(name, first, size)
            if tail is None:
                return Reading(None)
            entries = segment.read_footer(name, tail)
            await self.stored(name, tail[-segment.footer_bytes(tail) :])
            return Reading(entries)
        except ArchiveObjectError as error:
            if error.foreign:
                raise
            log.error("archived_footer_unreadable", name=name, reason=error.reason)
            reason = error.reason
        return await self._of_torn(name, reason)

    async def _of_torn(self, name: str, reason: str) -> Reading:
        content = await self._store.get(name)
        if content is None:
            return Reading(None)
        self.unreadable += 1
        entries = await asyncio.to_thread(lambda: list(segment.walk(name, content)))
        if not entries:
            await self._quarantine(name)
            return Reading(None, reason)
        return Reading(entries, f"{reason}; {len(entries)} whole entries in it are kept")

    async def _of_single(self, found: StoredObject) -> Reading:
        start = await self._store.get_range(found.name, 0, HEAD_BYTES)
        if start is not None and len(start) < frame.payload_offset(start):
            start = await self._store.get_range(found.name, 0, frame.payload_offset(start))
        if start is None:
            return Reading(None)
        entry = segment.read_alone(found.name, start, found.object_bytes)
        await self.stored(found.name, segment.footer(found.name, [record_of(entry)]))
        return Reading([entry])


async def _always() -> None:
    return


def _of_record(name: str, record: bytes) -> list[IndexEntry] | None:
    """What a segment of another length held, by its own record; None: that is not readable."""
    if not segment.seal_of(name):
        return None
    try:
        return segment.read_footer(name, record)
    except ArchiveObjectError:
        return None
