"""The store and its index, changed together: keep, fetch, sweep. Knows nothing of the bus."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Literal
from weakref import WeakValueDictionary

import msgspec
import structlog

from archive import segment
from archive.index import NamespaceIndex
from archive.index_entry import IndexEntry, object_name, order, score_of, used_ns
from archive.segment import ArchiveObjectError
from archive.settings import ArchiveSettings
from archive.store import ObjectStore, StoreError
from schemas.cache import Evicted
from schemas.protocols import Clock
from schemas.units import SECOND_NS, instant

log = structlog.get_logger()

SCAN_BATCH = 256
HEAD_BYTES = 4096
Outcome = Literal["stored", "repeated", "superseded", "expired"]


class DamagedObjectError(Exception):
    """The object of an indexed key was damaged and has been put aside."""

    def __init__(self, entry: IndexEntry, reason: str) -> None:
        super().__init__(reason)
        self.entry = entry
        self.reason = reason


class Vault:
    """Archived values by namespace and key; the newest version of a key is the only one.

    Work on one key is done one at a time, on different keys concurrently. Nothing is announced
    in the index before the store has it durably. A crash at any point leaves at worst an object
    that the next `load` recognises as superseded and removes.

    With `budget_bytes`, values are dropped after each `keep` and `load`, the least worthy first,
    until the objects of the namespace's values are within it; `dropped` counts them by namespace.
    Not bounded by it: tombstones, the objects being written now, and those that could not be
    deleted yet.
    """

    def __init__(self, store: ObjectStore, settings: ArchiveSettings, clock: Clock) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._indexes: dict[str, NamespaceIndex] = {}
        # A lock lives as long as somebody holds or awaits it.
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._leftovers: set[str] = set()
        self._loaded_ns = 0
        self.unreadable = 0
        self.dropped: Counter[str] = Counter()

    @property
    def namespaces(self) -> dict[str, NamespaceIndex]:
        """The index of every namespace that has been seen."""
        return self._indexes

    def index(self, namespace: str) -> NamespaceIndex:
        """The index of `namespace`; an empty one where nothing is known, which is not kept."""
        return self._indexes.get(namespace) or NamespaceIndex()

    async def load(self, on_progress: Callable[[int, int], None]) -> None:
        """Read the header of every object and start from what they say.

        `on_progress(done, total)` is called after each batch of 256. Superseded objects are
        removed, damaged ones put aside, foreign ones left alone.

        Raises:
            StoreError: the store cannot be read.
        """
        self._indexes = {}
        self._leftovers = set()
        self._loaded_ns = self._clock()
        self.unreadable = 0
        try:
            await self._store.remove_leftovers()
        except StoreError as error:  # what else it may do here, it may go on doing
            log.warning("archive_leftovers_stay", error=str(error))
        objects = await self._store.list_objects()
        for first in range(0, len(objects), SCAN_BATCH):
            batch = objects[first : first + SCAN_BATCH]
            starts = await asyncio.gather(*(self._start(stored.name) for stored in batch))
            for stored, start in zip(batch, starts, strict=True):
                if start is None:
                    continue
                try:
                    header = segment.decode_header(start, stored.object_bytes)
                    if object_name(header.manifest) != stored.name:
                        raise ArchiveObjectError("it lies under another object's name")
                except ArchiveObjectError as error:
                    await self._put_aside(stored.name, error)
                    continue
                entry = IndexEntry.of(header, stored.object_bytes)
                loser = self._kept_index(entry.namespace).put(entry)
                if loser is not None:
                    await self._discard(loser.name)
            on_progress(first + len(batch), len(objects))
        for index in self._indexes.values():
            await self._trim(index)

    async def keep(
        self, manifest: Evicted, value: bytes | Callable[[], Awaitable[bytes | bytearray]]
    ) -> tuple[Outcome, IndexEntry | None]:
        """Store an eviction or tombstone that `segment.check_value` has accepted.

        A `value` that is a function is called for the value only where it is to be stored.
        Keeping the same manifest again changes nothing ("repeated"). An expired value is not
        stored; where an older version of its key is, a tombstone takes that one's place.

        Returns:
            The outcome, and the entry if it is in the store.

        Raises:
            StoreError: not stored, nothing changed; try again.
        """
        index = self._kept_index(manifest.namespace)
        async with self._lock(manifest.namespace, manifest.key):
            kept = await self._keep(index, manifest, value)
        await self._trim(index)
        return kept

    async def fetch(
        self, namespace: str, key: str, generation: int | None
    ) -> tuple[Evicted, bytes] | None:
        """Manifest and value of `key`, verified; None when there is none that may be returned.

        `generation` is the asker's: what is older is a miss, and stays: only manifests begin a
        generation. None = the newest known.

        Raises:
            DamagedObjectError: there was one, but its object is broken or gone.
            StoreError: the store cannot be read.
        """
        index = self._indexes.get(namespace)
        if index is None:
            return None
        async with self._lock(namespace, key):
            entry = index.find(key, self._clock())
            if entry is None or (generation is not None and entry.generation < generation):
                return None
            try:
                content = await self._store.get(entry.name)
                if content is None:
                    raise ArchiveObjectError("the object is missing")
                header, value = await asyncio.to_thread(segment.decode, content)
                if object_name(header.manifest) != entry.name:
                    raise ArchiveObjectError("the object holds another entry")
            except ArchiveObjectError as error:
                await self._put_aside(entry.name, error)
                index.replace_by_tombstone(entry)
                raise DamagedObjectError(entry, error.reason) from error
            # Reading took time, and a clear may have come meanwhile.
            if index.find(key, self._clock()) is not entry:
                return None
            index.hand_out(entry)
            return header.manifest, value

    async def sweep(self) -> AsyncGenerator[IndexEntry, None]:
        """Remove expired and cleared values and tombstones past their time; yields each.

        Raises:
            StoreError: what is left is tried again by the next sweep.
        """
        for name in list(self._leftovers):
            await self._store.delete(name)
            self._leftovers.discard(name)
        now_ns = self._clock()
        tombstones_before_ns = now_ns - int(self._settings.tombstone_keep_seconds * SECOND_NS)
        for index in list(self._indexes.values()):
            for entry in index.due(now_ns, tombstones_before_ns):
                async with self._lock(entry.namespace, entry.key):
                    if not index.holds(entry):
                        continue
                    await self._store.delete(entry.name)
                    index.remove(entry)
                yield entry

    async def _start(self, name: str) -> bytes | None:
        """The object's bytes up to its payload or further; None where it has vanished."""
        start = await self._store.get_range(name, 0, HEAD_BYTES)
        with contextlib.suppress(ArchiveObjectError):
            if start is not None and len(start) < (offset := segment.payload_offset(start)):
                return await self._store.get_range(name, 0, offset)
        return start

    async def _keep(
        self,
        index: NamespaceIndex,
        manifest: Evicted,
        value: bytes | Callable[[], Awaitable[bytes | bytearray]],
    ) -> tuple[Outcome, IndexEntry | None]:
        index.saw_generation(manifest.generation)
        if manifest.tag is None:
            known = index.newest(manifest.key)
        else:
            known = index.tombstone_of(manifest.tag)
        if manifest.generation < index.generation:
            return "superseded", None
        if not manifest.tombstone and index.is_deleted(manifest.tags, order(manifest)):
            return "superseded", None
        its_order, expires_ns = order(manifest), segment.expires_ns(manifest)
        if known is not None and known.covers(its_order, expires_ns):
            if known.order != its_order:
                return "superseded", None
            index.use(known, score_of(manifest), used_ns(manifest))
            return "repeated", known
        now_ns = self._clock()
        if expires_ns is not None and now_ns >= expires_ns:
            if known is None or known.tombstone or known.order == its_order:
                return "expired", None
            manifest, value = _as_tombstone(manifest), b""
        content = value if isinstance(value, bytes) else await value()
        entry = await self._write(manifest, content, now_ns)
        replaced = index.put(entry)
        if replaced is not None and replaced.name != entry.name:
            await self._discard(replaced.name)
        return "stored", entry

    async def _trim(self, index: NamespaceIndex) -> None:
        while (entry := index.excess(self._clock())) is not None:
            async with self._lock(entry.namespace, entry.key):
                if index.newest(entry.key) is not entry or not index.excess(self._clock()):
                    continue
                try:
                    await self._drop(index, entry)
                except StoreError as error:
                    log.error("archive_over_budget", namespace=entry.namespace, error=str(error))
                    return

    async def _drop(self, index: NamespaceIndex, entry: IndexEntry) -> None:
        tombstone = await self._tombstone(entry) if self._needs_tombstone(index, entry) else None
        index.remove(entry)
        if tombstone is not None:
            index.put(tombstone)
        self.dropped[entry.namespace] += 1
        await self._discard(entry.name)

    def _needs_tombstone(self, index: NamespaceIndex, entry: IndexEntry) -> bool:
        """Whether an older version of the key could still come out of the eviction stream.

        What an entry took the place of is not known any more after a start.
        """
        age_seconds = (self._clock() - entry.stored_ns) / SECOND_NS
        return age_seconds < self._settings.tombstone_keep_seconds and (
            index.took_a_place(entry.key) or entry.stored_ns <= self._loaded_ns
        )

    async def _tombstone(self, entry: IndexEntry) -> IndexEntry:
        now_ns = self._clock()
        manifest = Evicted(
            namespace=entry.namespace,
            key=entry.key,
            version=entry.version,
            generation=entry.generation,
            evicted_at=instant(now_ns),
            tombstone=True,
            reason="budget",
        )
        return await self._write(manifest, b"", now_ns)

    async def _write(self, manifest: Evicted, value: bytes | bytearray, now_ns: int) -> IndexEntry:
        content = await asyncio.to_thread(
            segment.encode,
            manifest,
            value,
            stored_at=instant(now_ns),
            level=self._settings.zstd_level,
            min_ratio=self._settings.min_ratio,
        )
        await self._store.put(object_name(manifest), content)
        header = segment.decode_header(content, len(content))
        return IndexEntry.of(header, len(content))

    async def _discard(self, name: str) -> None:
        """Delete an object that is not needed any more; what fails is left to the sweep."""
        try:
            await self._store.delete(name)
        except StoreError:
            self._leftovers.add(name)

    async def _put_aside(self, name: str, error: ArchiveObjectError) -> None:
        self.unreadable += 1
        log.error("archived_object_unreadable", name=name, reason=error.reason)
        if not error.foreign:
            await self._store.quarantine(name)

    def _kept_index(self, namespace: str) -> NamespaceIndex:
        return self._indexes.setdefault(namespace, NamespaceIndex(self._settings.budget_bytes))

    def _lock(self, namespace: str, key: str) -> asyncio.Lock:
        return self._locks.setdefault((namespace, key), asyncio.Lock())


def _as_tombstone(manifest: Evicted) -> Evicted:
    return msgspec.structs.replace(
        manifest, tombstone=True, size_bytes=0, digest="", ttl_seconds=None, expires_at=None
    )
