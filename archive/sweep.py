"""Gives back what is over: forgets entries, removes dead segments, writes mostly dead ones anew."""

from collections import defaultdict
from collections.abc import AsyncGenerator

import msgspec
import structlog

from archive.frame import ArchiveObjectError
from archive.index import NamespaceIndex
from archive.index_entry import IndexEntry
from archive.lifecycle import FOREVER
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
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._moved_to: set[str] = set()

    async def sweep(self) -> AsyncGenerator[IndexEntry, None]:
        """One pass; yields each entry that it forgets.

        Raises:
            StoreError: what is left is done by the next pass.
        """
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
            await self._vault.store.delete(name)
            await self._vault.catalog.removed(name)
            self._vault.ledger.forget(name)

    async def _write_anew(self, before_ns: int) -> None:
        """Pack what is needed of wasteful segments into others; then they are dead."""
        wasteful = self._vault.ledger.wasteful(self._vault.settings.dead_ratio, before_ns)
        chosen = frozenset(wasteful)
        needed: defaultdict[str, list[IndexEntry]] = defaultdict(list)
        for index in self._indexes() if wasteful else ():
            for entry in index.in_segments(chosen):
                needed[entry.segment].append(entry)
        moved_bytes = 0
        for name in wasteful:
            has_bytes = any(entry.object_bytes for entry in needed[name])
            content = (await self._vault.store.get(name) if has_bytes else None) or b""
            for entry in needed[name]:
                moved_bytes += await self._move(entry, content)
            if moved_bytes >= self._vault.settings.segment_bytes:
                await self._remove_dead()
                moved_bytes = 0
        await self._remove_dead()

    async def _move(self, found: IndexEntry, content: bytes) -> int:
        """Pack `found`, of the segment with this content, into another; returns its bytes."""
        index = self._vault.index(found.namespace)
        async with self._vault.lock(found.namespace, found.key):
            entry = index.current(found)
            if entry is None:
                return 0
            packer = self._vault.packer
            stored = content[entry.first : entry.first + entry.object_bytes]
            try:
                if not stored:
                    raise ArchiveObjectError("it is not there")
                ttl_class = self._vault.ttl_class(index, entry)
                moved = packer.move(entry, stored, ttl_class)
            except ArchiveObjectError as error:
                if not entry.tombstone:
                    log.error("archived_entry_lost", segment=entry.segment, reason=error.reason)
                moved = await packer.add(
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

    async def _unneeded_guards(self, before_ns: int) -> list[tuple[NamespaceIndex, IndexEntry]]:
        """Tombstones that nothing needs any more, now that all that is stored is known."""
        if not any(index.guards(before_ns) for index in self._indexes()):
            return []
        await self._vault.adopt()
        needed_ns = self._vault.ledger.shadowed_since_ns()
        if needed_ns is not None:
            before_ns = min(before_ns, needed_ns)
        for index in self._indexes():
            index.forget_older(before_ns)
        return [(index, entry) for index in self._indexes() for entry in index.guards(before_ns)]

    def _indexes(self) -> list[NamespaceIndex]:
        return list(self._vault.namespaces.values())


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
