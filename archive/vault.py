"""The store and its index, changed together: keep and fetch. Knows nothing of the bus."""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Literal
from weakref import WeakValueDictionary

import msgspec
import structlog

from archive import frame, segment
from archive.catalog import Catalog
from archive.frame import ArchiveObjectError
from archive.index import NamespaceIndex
from archive.index_entry import IndexEntry, order, score_of, used_ns
from archive.ledger import Ledger
from archive.lifecycle import ttl_class
from archive.money import Meter
from archive.packer import INLINE_BYTES, Packer
from archive.settings import ArchiveSettings
from archive.store import ObjectStore, StoreError
from schemas.cache import Evicted
from schemas.protocols import Clock
from schemas.units import SECOND_NS

log = structlog.get_logger()

RANGE_BYTES = 8 * 1024 * 1024
RANGES_IN_FLIGHT = 4
Outcome = Literal["stored", "repeated", "superseded", "expired"]
Kept = tuple[Outcome, IndexEntry | None]
"""What became of an eviction, and its entry where there is one."""


class DamagedObjectError(Exception):
    """What an indexed key had in the store was damaged and is given up."""

    def __init__(self, entry: IndexEntry, reason: str) -> None:
        super().__init__(reason)
        self.entry = entry
        self.reason = reason


class Vault:
    """Archived values by namespace and key; the newest version of a key is the only one.

    Work on one key is done one at a time, on different keys concurrently. An entry is in the
    index, and can be fetched, as soon as it is packed; `keep` returns when it is durable. After a
    crash in between the index is that of what is durable, and the sender, who was not answered,
    sends the rest again.

    With `budget_bytes`, values are dropped after each `keep` and `load`, the least worthy first,
    until what the namespace's values take is within it; `dropped` counts them by namespace. Their
    bytes come back when their segment is written anew. Not bounded by it: tombstones, what is
    being written now, and what is not needed in segments that are mostly needed.
    """

    def __init__(
        self,
        store: ObjectStore,
        settings: ArchiveSettings,
        clock: Clock,
        *,
        catalog: Catalog | None = None,
        on_failure: Callable[[IndexEntry, StoreError], Awaitable[None]] | None = None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.clock = clock
        self.catalog = catalog or Catalog(store)
        self._on_failure = on_failure or _log_failure
        # A lock lives as long as somebody holds or awaits it.
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self.dropped: Counter[str] = Counter()
        self.meter = Meter(clock)
        self._start_anew()

    def _start_anew(self) -> None:
        self.meter.forget_held()
        self.ledger = Ledger(self.meter)
        self.namespaces: dict[str, NamespaceIndex] = {}
        self.packer = Packer(
            self.store, self.settings, self.ledger, self._on_failure, self.catalog.stored
        )

    def index(self, namespace: str) -> NamespaceIndex:
        """The index of `namespace`; an empty one where nothing is known, which is not kept."""
        return self.namespaces.get(namespace) or NamespaceIndex()

    async def load(self, on_progress: Callable[[int, int], None]) -> None:
        """Start from what the store holds.

        `on_progress(done, total)` is called after each batch of objects. Damaged objects are put
        aside, foreign ones left alone.

        Raises:
            StoreError: the store cannot be read.
        """
        await self.close()
        self._start_anew()
        try:
            await self.store.remove_leftovers()
        except StoreError as error:  # what else it may do here, it may go on doing
            log.warning("archive_leftovers_stay", error=str(error))
        await self.adopt(on_progress)
        for index in self.namespaces.values():
            await self._trim(index)

    async def adopt(self, on_progress: Callable[[int, int], None] = lambda *_: None) -> None:
        """Take objects into the index that are not in it yet.

        Later than at the start that can only be what a former owner was writing when it lost
        its lease.

        Raises:
            StoreError: the store cannot be read.
        """

        def is_known(name: str) -> bool:
            return name in self.ledger.segments

        async for found, entries in self.catalog.read(is_known, on_progress):
            use = self.ledger.use(found.name)
            use.object_bytes = found.object_bytes
            for entry in entries:
                self._kept_index(entry.namespace).put(entry)
        # What had expired before was announced by who swept it; its bytes may stay for long.
        now_ns = self.clock()
        for index in self.namespaces.values():
            for entry in index.due(now_ns):
                if entry.is_expired(now_ns):
                    self.retire(index, entry, now_ns)

    async def close(self) -> None:
        """Give up what is packed and not stored; it was not answered."""
        await self.packer.close()

    async def keep(
        self, manifest: Evicted, value: bytes | Callable[[], Awaitable[bytes | bytearray]]
    ) -> Kept:
        """Store an eviction or tombstone that `frame.check_value` has accepted.

        A `value` that is a function is called for the value only where it is to be stored.
        Keeping the same manifest again changes nothing ("repeated"). An expired value is not
        stored; where an older version of its key is, a tombstone takes that one's place. While
        the store fails this waits.
        """
        return await self.settled(await self.pack(manifest, value))

    async def pack(
        self, manifest: Evicted, value: bytes | Callable[[], Awaitable[bytes | bytearray]]
    ) -> Kept:
        """The first half of `keep`: it can be fetched, but is not durable yet."""
        index = self._kept_index(manifest.namespace)
        async with self.lock(manifest.namespace, manifest.key):
            return await self._pack(index, manifest, value)

    async def settled(self, kept: Kept) -> Kept:
        """The second half of `keep`: what `pack` returned, once it is durable."""
        _, entry = kept
        if entry is not None:
            await self.packer.wait(entry.segment)
            await self._trim(self.index(entry.namespace))
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
        index = self.namespaces.get(namespace)
        if index is None:
            return None
        async with self.lock(namespace, key):
            entry = index.find(key, self.clock())
            if entry is None or (generation is not None and entry.generation < generation):
                return None
            try:
                manifest, value = await self._read(entry)
            except ArchiveObjectError as error:
                if not index.holds(entry):  # it expired or was cleared, and was removed
                    return None
                await self.catalog.put_aside(entry.segment, error)
                index.retire(entry, self.clock(), self.clock(), guard=True)
                raise DamagedObjectError(entry, error.reason) from error
            # Reading took time, and a clear may have come meanwhile.
            if index.find(key, self.clock()) is not entry:
                return None
            index.hand_out(entry)
            return manifest, value

    def lock(self, namespace: str, key: str) -> asyncio.Lock:
        """Held by who changes what the index says of `key`."""
        return self._locks.setdefault((namespace, key), asyncio.Lock())

    def ttl_class(self, index: NamespaceIndex, entry: IndexEntry) -> str:
        """How long a segment must last that `entry` is put into."""
        return self._ttl_class(index, entry.key, _until_ns(entry.expires_ns))

    def _ttl_class(self, index: NamespaceIndex, key: str, until_ns: float) -> str:
        """As long as the entry, and as long as what it outdates."""
        until_ns = max(until_ns, index.older_until_ns(key))
        return ttl_class(None if until_ns == math.inf else (until_ns - self.clock()) / SECOND_NS)

    async def _read(self, entry: IndexEntry) -> tuple[Evicted, bytes]:
        content = self.packer.read(entry)
        if content is None:
            content = await self._frame(entry)
        if content is None:
            raise ArchiveObjectError("the object is missing")
        seal = segment.seal_of(entry.segment)
        if len(content) <= INLINE_BYTES:
            header, value = frame.decode(content, seal)
        else:
            header, value = await asyncio.to_thread(frame.decode, content, seal)
        found = IndexEntry.of(header, len(content), segment=entry.segment, first=entry.first)
        if (found.namespace, found.key, found.order) != (entry.namespace, entry.key, entry.order):
            raise ArchiveObjectError("the object holds another entry")
        return header.manifest, value

    async def _frame(self, entry: IndexEntry) -> bytes | None:
        """The entry's bytes from the store, a large one's by ranges side by side."""
        end = entry.first + entry.object_bytes
        firsts = range(entry.first, end, RANGE_BYTES)
        if len(firsts) == 1:
            return await self.store.get_range(entry.segment, entry.first, end)
        slots = asyncio.Semaphore(RANGES_IN_FLIGHT)

        async def read(first: int) -> bytes | None:
            async with slots:
                return await self.store.get_range(
                    entry.segment, first, min(first + RANGE_BYTES, end)
                )

        try:
            async with asyncio.TaskGroup() as group:
                reading = [group.create_task(read(first)) for first in firsts]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        pieces = [task.result() for task in reading]
        return None if None in pieces else b"".join(piece for piece in pieces if piece)

    async def _pack(
        self,
        index: NamespaceIndex,
        manifest: Evicted,
        value: bytes | Callable[[], Awaitable[bytes | bytearray]],
    ) -> Kept:
        index.saw_generation(manifest.generation)
        if manifest.tag is None:
            known = index.newest(manifest.key)
        else:
            known = index.tombstone_of(manifest.tag)
        if manifest.generation < index.generation:
            return "superseded", None
        if not manifest.tombstone and index.is_deleted(manifest.tags, order(manifest)):
            return "superseded", None
        its_order, expires_ns = order(manifest), frame.expires_ns(manifest)
        if known is not None and known.covers(its_order, expires_ns):
            if known.order != its_order:
                return "superseded", None
            index.use(known, score_of(manifest), used_ns(manifest))
            return "repeated", known
        now_ns = self.clock()
        if expires_ns is not None and now_ns >= expires_ns:
            if known is None or known.tombstone or known.order == its_order:
                return "expired", None
            manifest, value = _as_tombstone(manifest), b""
        content = value if isinstance(value, bytes) else await value()
        until_ns = _until_ns(None if manifest.tombstone else expires_ns)
        if known is not None and not known.tombstone:
            until_ns = max(until_ns, _until_ns(known.expires_ns))
        entry = await self.packer.add(
            manifest,
            content,
            stored_ns=now_ns,
            ttl_class=self._ttl_class(index, manifest.key, until_ns),
            follows=known is not None and (known.follows or known.order != its_order),
        )
        index.put(entry)
        return "stored", entry

    def retire(self, index: NamespaceIndex, entry: IndexEntry, since_ns: int) -> None:
        """Give up a value, which something stored at `since_ns` has outdated.

        Where an older version of its key could still come out of the eviction stream, that it is
        outdated is remembered.
        """
        now_ns = self.clock()
        age_seconds = (now_ns - entry.stored_ns) / SECOND_NS
        may_come = entry.follows and age_seconds < self.settings.tombstone_keep_seconds
        index.retire(entry, since_ns, now_ns, guard=may_come)

    async def _trim(self, index: NamespaceIndex) -> None:
        while (entry := index.excess(self.clock())) is not None:
            async with self.lock(entry.namespace, entry.key):
                if index.newest(entry.key) is entry and index.excess(self.clock()):
                    self.retire(index, entry, self.clock())
                    self.dropped[entry.namespace] += 1

    def _kept_index(self, namespace: str) -> NamespaceIndex:
        found = self.namespaces.get(namespace)
        if found is None:
            found = NamespaceIndex(self.settings.budget_bytes, self.ledger)
            self.namespaces[namespace] = found
        return found


def _until_ns(expires_ns: int | None) -> float:
    return math.inf if expires_ns is None else expires_ns


def _as_tombstone(manifest: Evicted) -> Evicted:
    return msgspec.structs.replace(
        manifest, tombstone=True, size_bytes=0, digest="", ttl_seconds=None, expires_at=None
    )


async def _log_failure(_entry: IndexEntry, error: StoreError) -> None:
    log.error("archive_store_failed", error=str(error))
