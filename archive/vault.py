"""The store and its index, changed together: keep and fetch. Knows nothing of the bus."""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from weakref import WeakValueDictionary

import structlog

from archive.billing import made_for
from archive.catalog import Catalog
from archive.frame import ArchiveObjectError
from archive.incoming import Incoming, IncomingFrame
from archive.index import NamespaceIndex
from archive.index_entry import IndexEntry
from archive.keeping import Candidate, Eviction, Kept, Verdict, is_small, pack, pack_small
from archive.ledger import Ledger
from archive.lifecycle import ttl_class
from archive.money import Meter
from archive.packer import Packer, Value
from archive.settings import ArchiveSettings
from archive.store import ObjectRefusedError, ObjectStore, StoredObject, StoreError
from schemas.cache import Evicted
from schemas.protocols import Clock
from schemas.units import SECOND_NS

log = structlog.get_logger()

RANGE_BYTES = 4 * 1024 * 1024
"""About: less would cost more requests, and more would leave more to hand on at the end."""
RANGES_IN_FLIGHT = 2
PACKED_AT_ONCE = 64
"""Small values: for some milliseconds nothing else is done."""


class DamagedObjectError(Exception):
    """What an indexed key had in the store was damaged and is given up."""

    def __init__(self, entry: IndexEntry, reason: str) -> None:
        super().__init__(reason)
        self.entry = entry
        self.reason = reason


class Vault:
    """Archived values by namespace and key; the newest version of a key is the only one.

    Implements Keeping. Work on one key is done one at a time, on different keys concurrently. An
    entry is in the index, and can be fetched, as soon as it is packed; `keep` returns when it is
    durable. After a crash in between the index is that of what is durable, and the sender, who
    was not answered, sends the rest again.

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
        check_store: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`check_store` is awaited before a value is given up.

        It raises StoreError where the store is not the one that is meant: unmounted, emptied.
        """
        self.store = store
        self.settings = settings
        self.clock = clock
        self.catalog = catalog or Catalog(store)
        self.trouble = self.catalog.trouble
        self._on_failure = on_failure or _log_failure
        self._check_store = check_store or _nothing_to_check
        # A lock lives as long as somebody holds or awaits it.
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self.dropped: Counter[str] = Counter()
        self.meter = Meter(clock, store.requests)
        self._start_anew()

    def _start_anew(self) -> None:
        self.meter.forget_held()
        self.ledger = Ledger(self.meter)
        self.namespaces: dict[str, NamespaceIndex] = {}
        self.packer = Packer(self.store, self.settings, self._on_failure, self._stored)

    async def _stored(self, name: str, footer: bytes, object_bytes: int) -> None:
        self.ledger.use(name).object_bytes = object_bytes
        await self.catalog.stored(name, footer)

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
        await self.trim(self.namespaces)

    async def adopt(self, on_progress: Callable[[int, int], None] = lambda *_: None) -> None:
        """Take objects into the index that are not in it yet.

        Later than at the start that can only be what another archiver has stored and not told
        yet, or never will.

        Raises:
            StoreError: the store cannot be read.
        """

        def is_known(name: str) -> bool:
            return name in self.ledger.segments or self.packer.holds(name)

        async for found, entries in self.catalog.read(is_known, on_progress):
            self.adopt_one(found, entries)
        # What had expired before was announced by who swept it; its bytes may stay for long.
        now_ns = self.clock()
        for index in self.namespaces.values():
            for entry in index.due(now_ns):
                if entry.is_expired(now_ns):
                    self.retire(index, entry, now_ns)

    def adopt_one(self, found: StoredObject, entries: Sequence[IndexEntry]) -> bool:
        """Take an object's entries into the index; False: they were there already."""
        if found.name in self.ledger.segments:
            return False
        self.ledger.use(found.name).object_bytes = found.object_bytes
        for entry in entries:
            self._kept_index(entry.namespace).put(entry)
            self.trouble.replaced(entry)
        return True

    async def look_again(self) -> None:
        """Take what the store refused to give into the index, where it gives it now.

        Raises:
            StoreError: the store cannot be read.
        """
        known = self.ledger.segments
        async for found, entries in self.catalog.look_again(known.__contains__):
            self.adopt_one(found, entries)

    def damaged(self, namespace: str) -> int:
        """How many of its values were found damaged, and are neither replaced nor over."""
        return self.trouble.damaged(namespace, self.index(namespace), self.clock())

    async def close(self) -> None:
        """Give up what is packed and not stored; it was not answered."""
        await self.packer.close()

    def forget(self) -> None:
        """Somebody else keeps the index from now on."""
        self._start_anew()

    async def keep(self, manifest: Evicted, value: Value) -> Kept:
        """Store an eviction or tombstone that `frame.check_value` has accepted.

        Keeping the same manifest again changes nothing ("repeated"). An expired value is not
        stored; where an older version of its key is, a tombstone takes that one's place. While
        the store fails this waits.
        """
        kept = await self.pack(manifest, value)
        await self.settle_all([kept])
        return kept

    async def ready(self) -> None:
        """Always."""

    async def pack_all(self, evictions: Sequence[Eviction]) -> list[Kept]:
        """The first half of `keep`: they can be fetched, but are not durable yet."""
        kept = []
        for manifest, value in evictions:
            if is_small(value) and (manifest.namespace, manifest.key) not in self._locks:
                kept.append(self._pack_at_once(manifest, value))
            else:
                kept.append(await self.pack(manifest, value))
            if len(kept) % PACKED_AT_ONCE == 0:
                await asyncio.sleep(0)  # whoever asks for a value has a turn
        return kept

    async def pack(self, manifest: Evicted, value: Value) -> Kept:
        """One of `pack_all`."""
        async with self.lock(manifest.namespace, manifest.key):
            verdict = self.decide(Candidate.of(manifest))
            if verdict.outcome != "stored":
                return verdict.outcome, verdict.known
            entry = await pack(self.packer, (manifest, value), verdict, self.clock())
            return self._packed(entry)

    def _pack_at_once(self, manifest: Evicted, value: Value) -> Kept:
        """The same without a lock, which nobody has: nothing can come in between."""
        verdict = self.decide(Candidate.of(manifest))
        if verdict.outcome != "stored":
            return verdict.outcome, verdict.known
        return self._packed(pack_small(self.packer, (manifest, value), verdict, self.clock()))

    def _packed(self, entry: IndexEntry) -> Kept:
        self._kept_index(entry.namespace).put(entry)
        self.trouble.replaced(entry)
        return "stored", entry

    async def settle_all(self, kept: Sequence[Kept]) -> None:
        """The second half of `keep`: return once what `pack_all` returned is durable."""
        entries = [entry for _, entry in kept if entry is not None]
        await self.packer.wait_all(entries)
        await self.trim({entry.namespace for entry in entries})

    def decide(self, new: Candidate, *, only_durable: bool = False) -> Verdict:
        """What is to be done with an eviction; packed here or, with `only_durable`, elsewhere.

        Elsewhere it is packed once more where it is here and not durable yet.
        """
        index = self._kept_index(new.namespace)
        index.saw_generation(new.generation)
        known = index.newest(new.key) if new.tag is None else index.tombstone_of(new.tag)
        if new.generation < index.generation:
            return Verdict("superseded")
        if new.tags and not new.tombstone and index.is_deleted(new.tags, new.order):
            return Verdict("superseded")
        if known is not None and known.covers(new.order, new.expires_ns):
            if known.order != new.order:
                return Verdict("superseded")
            if not (only_durable and self.packer.holds(known.segment)):
                index.use(known, new.score, new.used_ns)
                return Verdict("repeated", known=known)
        has_expired = new.expires_ns is not None and self.clock() >= new.expires_ns
        if has_expired and (known is None or known.tombstone or known.order == new.order):
            return Verdict("expired")
        until_ns = _until_ns(None if new.tombstone or has_expired else new.expires_ns)
        if known is not None and not known.tombstone:
            until_ns = max(until_ns, _until_ns(known.expires_ns))
        return Verdict(
            "stored",
            ttl_class=self._ttl_class(index, new.key, until_ns),
            follows=known is not None and (known.follows or known.order != new.order),
            as_tombstone=has_expired,
        )

    async def fetch(
        self, namespace: str, key: str, generation: int | None, incoming: Incoming | None = None
    ) -> tuple[Evicted, memoryview] | None:
        """Manifest and value of `key`, verified; None when there is none that may be returned.

        `generation` is the asker's: what is older is a miss, and stays: only manifests begin a
        generation. None = the newest known. `incoming` learns what comes of it meanwhile, not how
        it ended.

        Raises:
            DamagedObjectError: there was one, but its object is broken or gone, at a second look
                too.
            StoreError: the store cannot be read, or what came of it was damaged on its way.
        """
        index = self.namespaces.get(namespace)
        if index is None:
            return None
        async with self.lock(namespace, key):
            entry = index.find(key, self.clock())
            if entry is None or (generation is not None and entry.generation < generation):
                return None
            incoming = incoming or Incoming()
            try:
                try:
                    manifest, value = await self._read(entry, incoming)
                except ArchiveObjectError as error:
                    if not index.holds(entry):  # it expired or was cleared, and was removed
                        return None
                    manifest, value = await self._read_again(entry, incoming, error)
            except ArchiveObjectError as error:
                if not index.holds(entry):
                    return None
                await self.catalog.put_aside(entry.segment, error)
                index.retire(entry, self.clock(), self.clock(), guard=True)
                self.trouble.found_damaged(entry)
                raise DamagedObjectError(entry, error.reason) from error
            except ObjectRefusedError as error:
                self.trouble.cannot_read(error)
                raise
            self.trouble.can_read(entry.segment)
            self.trouble.replaced(entry)  # a sweep may have found it damaged
            # Reading took time, and a clear may have come meanwhile.
            if not index.holds(entry) or index.find(key, self.clock()) is None:
                return None
            if generation is not None:  # a cache asked, and has it now
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

    async def _read_again(
        self, entry: IndexEntry, incoming: Incoming, error: ArchiveObjectError
    ) -> tuple[Evicted, memoryview]:
        """Look once more before a value is given up, which the next sweep makes final."""
        await self._check_store()
        found = await self._read(entry, Incoming())
        log.warning("archived_value_damaged_on_its_way", reason=error.reason)
        if incoming.has_begun:  # some of what came first may have been handed on
            raise StoreError(f"a value was damaged on its way ({error.reason}): ask again")
        return found

    async def _read(self, entry: IndexEntry, incoming: Incoming) -> tuple[Evicted, memoryview]:
        with made_for([entry]):
            return await self._read_frame(entry, incoming)

    async def _read_frame(
        self, entry: IndexEntry, incoming: Incoming
    ) -> tuple[Evicted, memoryview]:
        coming = IncomingFrame(entry, incoming)
        try:
            content = self.packer.read(entry)
            if content is not None:
                coming.content[:] = content
                coming.came(len(content))
            else:
                await self._fill(entry, coming)
            return await coming.finish()
        finally:
            coming.cancel()

    async def _fill(self, entry: IndexEntry, coming: IncomingFrame) -> None:
        """Have the entry's bytes come from the store, of a large one by equal ranges."""
        count = max(1, round(entry.object_bytes / RANGE_BYTES))
        range_bytes = -(-entry.object_bytes // count)
        firsts = range(0, entry.object_bytes, range_bytes)
        ends = [min(first + range_bytes, entry.object_bytes) for first in firsts]
        come = list(firsts)
        slots = asyncio.Semaphore(RANGES_IN_FLIGHT)

        async def read(number: int) -> None:
            def take(piece: bytes) -> None:
                at = come[number]
                come[number] += len(piece)
                if come[number] > ends[number]:
                    raise ArchiveObjectError("the store gives more than was asked for")
                coming.content[at : come[number]] = piece
                gaps = (at for at, end in zip(come, ends, strict=True) if at < end)
                coming.came(next(gaps, entry.object_bytes))

            first, end = entry.first + firsts[number], entry.first + ends[number]
            async with slots:
                if not await self.store.get_range_to(entry.segment, first, end, take):
                    raise ArchiveObjectError("the object is missing")

        if count == 1:
            await read(0)
            return
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(count):
                    group.create_task(read(number))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def retire(self, index: NamespaceIndex, entry: IndexEntry, since_ns: int) -> None:
        """Give up a value, which something stored at `since_ns` has outdated.

        Where an older version of its key could still come out of the eviction stream, that it is
        outdated is remembered.
        """
        now_ns = self.clock()
        age_seconds = (now_ns - entry.stored_ns) / SECOND_NS
        may_come = entry.follows and age_seconds < self.settings.tombstone_keep_seconds
        index.retire(entry, since_ns, now_ns, guard=may_come)

    async def trim(self, namespaces: Iterable[str]) -> None:
        """Drop values until these namespaces are within their budget."""
        for namespace in namespaces:
            await self._trim(self.index(namespace))

    async def _trim(self, index: NamespaceIndex) -> None:
        while (entry := index.excess(self.clock())) is not None:
            async with self.lock(entry.namespace, entry.key):
                if index.holds(entry) and index.excess(self.clock()):
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


async def _nothing_to_check() -> None:
    return


async def _log_failure(_entry: IndexEntry, error: StoreError) -> None:
    log.error("archive_store_failed", error=str(error))
