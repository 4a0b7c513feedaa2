"""Gives back what is over: forgets entries, removes dead segments, writes others anew."""

from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec
import structlog

from archive.billing import made_for
from archive.frame import ArchiveObjectError
from archive.index import NamespaceIndex
from archive.index_entry import IndexEntry
from archive.lifecycle import FOREVER
from archive.store import ObjectRefusedError
from archive.vault import Vault
from schemas.cache import Evicted
from schemas.units import SECOND_NS, instant

log = structlog.get_logger()


class Sweeper:
    """One pass at a time over everything a vault holds.

    What outdates other entries (tombstones, and newer versions that have expired themselves) is
    remembered for as long as any segment holds what it outdates, and for `tombstone_keep_seconds`
    at least, as older versions may come out of the eviction stream for so long. To bound it, a
    segment is written anew when something in it has been outdated for that long.

    `before_removal` is awaited before each segment is removed, and before a value is given up that
    the store does not have; where it raises they stay.
    """

    def __init__(
        self, vault: Vault, before_removal: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._vault = vault
        self._before_removal = before_removal or _always
        self._moved_to: set[str] = set()

    async def sweep(self) -> AsyncGenerator[IndexEntry, None]:
        """One pass; yields each entry that it forgets.

        Raises:
            StoreError: what is left is done by the next pass.
        """
        await self._vault.look_again()
        for index in self._indexes():
            for entry in index.due(self._vault.clock()):
                deleted_ns = index.deleted_ns(entry)
                now_ns = self._vault.clock()
                self._vault.retire(index, entry, now_ns if deleted_ns is None else deleted_ns)
                yield entry
        await self._remove_dead()
        before_ns = self._vault.clock() - int(
            self._vault.settings.tombstone_keep_seconds * SECOND_NS
        )
        await self._write_anew(before_ns)
        for index, entry in await self._unneeded_guards(before_ns):
            index.remove(entry)
            yield entry
        await self._remove_dead()

    async def _remove_dead(self) -> None:
        # Not before that is durable which was moved out of them.
        for name in list(self._moved_to):
            await self._vault.packer.wait(name)
            self._moved_to.discard(name)
        for name in self._vault.ledger.dead():
            await self._before_removal()
            try:
                await self._vault.store.delete(name)
            except ObjectRefusedError as error:  # the next sweep tries again
                self._vault.trouble.cannot_remove(error)
                continue
            await self._vault.catalog.removed(name)
            self._vault.ledger.forget(name)

    async def _write_anew(self, before_ns: int) -> None:
        """Pack what is needed of wasteful and small segments into others; then they are dead."""
        turns = self._turns(before_ns)
        chosen = frozenset(name for names in turns for name in names)
        needed: defaultdict[str, list[IndexEntry]] = defaultdict(list)
        for index in self._indexes() if chosen else ():
            for entry in index.in_segments(chosen):
                needed[entry.segment].append(entry)
        moved_bytes = 0
        for names in turns:
            # All are read before the first is moved: where they are moved to is closed soon.
            contents = [await self._content(needed[name]) for name in names]
            for name, content in zip(names, contents, strict=True):
                if content is None:
                    continue
                for entry in needed[name]:
                    moved_bytes += await self._move(entry, content)
            if moved_bytes >= self._vault.settings.segment_bytes:
                await self._remove_dead()
                moved_bytes = 0
        await self._remove_dead()

    def _turns(self, before_ns: int) -> list[list[str]]:
        """Segments to write anew: each wasteful one by itself, small ones up to the full size."""
        ledger, settings = self._vault.ledger, self._vault.settings
        wasteful = ledger.wasteful(settings.dead_ratio, before_ns)
        turns = [[name] for name in wasteful]
        room_bytes = 0
        for name in set(ledger.small(settings.segment_bytes)).difference(wasteful):
            room_bytes -= ledger.segments[name].object_bytes
            if room_bytes < 0:
                turns.append([])
                room_bytes = settings.segment_bytes
            turns[-1].append(name)
        return turns

    async def _content(self, needed: list[IndexEntry]) -> bytes | None:
        """Of the segment that these lie in; empty where it is gone, or nothing of it is needed.

        None: it cannot be read now, and stays as it is.
        """
        if not any(entry.object_bytes for entry in needed):
            return b""
        name = needed[0].segment
        try:
            with made_for(needed):
                content = await self._vault.store.get(name)
        except ObjectRefusedError as error:
            self._vault.trouble.cannot_read(error)
            return None
        self._vault.trouble.can_read(name)
        if content is None:  # or is the whole store not there?
            await self._before_removal()
        return content or b""

    async def _move(self, found: IndexEntry, content: bytes) -> int:
        """Pack `found`, of the segment with this content, into another; returns its bytes."""
        index = self._vault.index(found.namespace)
        async with self._vault.lock(found.namespace, found.key):
            entry = index.current(found)
            if entry is None:
                return 0
            stored = content[entry.first : entry.first + entry.object_bytes]
            try:
                moved = await self._packed(index, entry, stored)
            except ObjectRefusedError as error:
                self._vault.trouble.cannot_read(error)
                return 0
            except ArchiveObjectError as error:
                if not entry.tombstone:
                    log.error("archived_entry_lost", segment=entry.segment, reason=error.reason)
                moved = await self._vault.packer.add(
                    _tombstone(entry),
                    b"",
                    stored_ns=entry.stored_ns,
                    ttl_class=FOREVER,
                    follows=entry.follows,
                )
            self._moved_to.add(moved.segment)
            index.replace(
                entry, msgspec.structs.replace(moved, score=entry.score, used_ns=entry.used_ns)
            )
            return moved.object_bytes

    async def _packed(self, index: NamespaceIndex, entry: IndexEntry, stored: bytes) -> IndexEntry:
        """Of an entry with this frame, the place in another segment.

        Raises:
            ArchiveObjectError: the frame is not there, or damaged, at a second look too.
        """
        ttl_class = self._vault.ttl_class(index, entry)
        try:
            return self._moved(entry, stored, ttl_class)
        except ArchiveObjectError:
            if not stored:
                raise
        end = entry.first + entry.object_bytes
        stored = await self._vault.store.get_range(entry.segment, entry.first, end) or b""
        return self._moved(entry, stored, ttl_class)

    def _moved(self, entry: IndexEntry, stored: bytes, ttl_class: str) -> IndexEntry:
        if not stored:
            raise ArchiveObjectError("it is not there")
        return self._vault.packer.move(entry, stored, ttl_class)

    async def _unneeded_guards(self, before_ns: int) -> list[tuple[NamespaceIndex, IndexEntry]]:
        """Tombstones that nothing needs any more, now that all that is stored is known."""
        if not any(index.guards(before_ns) for index in self._indexes()):
            return []
        await self._vault.adopt()
        unread = self._vault.trouble.unreadable.keys() - self._vault.ledger.segments.keys()
        if unread:  # any of them may hold what these outdate
            return []
        needed_ns = self._vault.ledger.shadowed_since_ns()
        if needed_ns is not None:
            before_ns = min(before_ns, needed_ns)
        for index in self._indexes():
            index.forget_older(before_ns)
        return [(index, entry) for index in self._indexes() for entry in index.guards(before_ns)]

    def _indexes(self) -> list[NamespaceIndex]:
        return list(self._vault.namespaces.values())


async def _always() -> None:
    return


def _tombstone(entry: IndexEntry) -> Evicted:
    return Evicted(
        namespace=entry.namespace,
        key=entry.key,
        version=entry.version,
        generation=entry.generation,
        evicted_at=instant(entry.stored_ns),
        tombstone=True,
        reason="superseded",
        tag=entry.tag,
    )
