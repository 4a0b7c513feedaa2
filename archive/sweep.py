"""Gives back what is over: forgets entries, removes dead segments, writes others anew."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Container

import msgspec
import structlog

from archive import scrub
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

    What it moves it verifies, values too. One that is damaged, at a second look as well, is told
    and stays where it is, for `tombstone_keep_seconds`: it may have been the way, or can be
    mended; then its key is given up.

    `before_removal` is awaited before each segment is removed, and before a value is given up that
    the store does not have; where it raises they stay.
    """

    def __init__(
        self, vault: Vault, before_removal: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._vault = vault
        self._before_removal = before_removal or _always
        self._moved_to: set[str] = set()
        self._left: dict[str, int] = {}
        """Segments in which something damaged was left, and since when (ns)."""

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
            self._left.pop(name, None)

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
            # All are read and verified before the first is moved: where they go is closed soon.
            contents = [await self._content(needed[name]) for name in names]
            spoiled = [
                await asyncio.to_thread(scrub.damaged, content or b"", needed[name])
                for name, content in zip(names, contents, strict=True)
            ]
            for name, content, damaged in zip(names, contents, spoiled, strict=True):
                if content is None:
                    continue
                for entry in needed[name]:
                    moved_bytes += await self._move(entry, content, damaged, before_ns)
            if moved_bytes >= self._vault.settings.segment_bytes:
                await self._remove_dead()
                moved_bytes = 0
        await self._remove_dead()

    def _turns(self, before_ns: int) -> list[list[str]]:
        """Segments to write anew: each wasteful one by itself, small ones up to the full size."""
        ledger, settings = self._vault.ledger, self._vault.settings
        wasteful = ledger.wasteful(settings.dead_ratio, before_ns)
        left = {name for name, since_ns in self._left.items() if since_ns >= before_ns}
        turns = [[name] for name in wasteful if name not in left]
        room_bytes = 0
        for name in set(ledger.small(settings.segment_bytes)).difference(wasteful, left):
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

    async def _move(
        self, found: IndexEntry, content: bytes, damaged: Container[int], before_ns: int
    ) -> int:
        """Pack `found`, of the segment with this content, into another; returns its bytes.

        `damaged`: where in it damaged frames begin.
        """
        index = self._vault.index(found.namespace)
        async with self._vault.lock(found.namespace, found.key):
            entry = index.current(found)
            if entry is None:
                return 0
            stored = content[entry.first : entry.first + entry.object_bytes]
            try:
                if content and entry.first in damaged:
                    stored = await self._read_again(entry)
                moved = self._moved(entry, stored, self._vault.ttl_class(index, entry))
            except ObjectRefusedError as error:
                self._vault.trouble.cannot_read(error)
                return 0
            except ArchiveObjectError as error:
                if not entry.tombstone:
                    if content and self._leaves(entry, error, before_ns):
                        return 0
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

    async def _read_again(self, entry: IndexEntry) -> bytes:
        """Its frame, looked at once more before it is called damaged.

        Raises:
            ArchiveObjectError: it is.
        """
        end = entry.first + entry.object_bytes
        with made_for([entry]):
            stored = await self._vault.store.get_range(entry.segment, entry.first, end) or b""
        await asyncio.to_thread(scrub.check, entry, stored)
        log.warning("archived_value_damaged_on_its_way", segment=entry.segment)
        return stored

    def _leaves(self, entry: IndexEntry, error: ArchiveObjectError, before_ns: int) -> bool:
        """Whether a damaged value stays where it is for now; then it is told."""
        since_ns = self._left.setdefault(entry.segment, self._vault.clock())
        if since_ns < before_ns:
            return False
        log.error("archived_value_damaged", segment=entry.segment, reason=error.reason)
        self._vault.trouble.found_damaged(entry)
        return True

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
