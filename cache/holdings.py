"""What an owner holds of a namespace: RAM, and what waits in the outbox, as one."""

import asyncio
import weakref
from collections.abc import Iterator, Sequence
from typing import Literal

import structlog

from cache.archived import ArchivedKeys
from cache.contents import SHARDS
from cache.counters import Counters
from cache.entry import Entry
from cache.entry_store import EntryStore
from cache.evictions import Evictions
from cache.files import Files
from cache.limits import Limits
from cache.outbox import Item, Outbox
from cache.reuse import ReuseLearner
from cache.value_file import ValueFile
from schemas.protocols import Clock

log = structlog.get_logger()

Where = Literal["ram", "outbox"]


class Holdings:
    """Finds an entry wherever it is, has it in RAM, and lets go of it everywhere.

    What a kept entry pushes out of RAM goes the way of `Evictions`; one that waits for the
    archive is still answered, and may return to RAM.

    `has_seen_tokens`: an entry said how many tokens it stands for.
    """

    def __init__(
        self,
        name: str,
        memory: EntryStore,
        outbox: Outbox,
        files: Files,
        limits: Limits,
        learner: ReuseLearner,
        archived: ArchivedKeys,
        evictions: Evictions,
        counters: Counters,
        clock: Clock,
    ) -> None:
        """`name` is the namespace's, for the log."""
        self.has_seen_tokens = False
        self._name = name
        self._memory = memory
        self._outbox = outbox
        self._files = files
        self._limits = limits
        self._learner = learner
        self._archived = archived
        self._evictions = evictions
        self._counters = counters
        self._clock = clock
        self._value_files: weakref.WeakSet[ValueFile] = weakref.WeakSet()

    def peek(self, key: str) -> tuple[Entry, Where] | None:
        """The entry and where it is; counts nothing and changes no order."""
        entry = self._memory.peek(key)
        if entry is not None:
            return entry, "ram"
        entry = self.waiting(key)
        return None if entry is None else (entry, "outbox")

    def waiting(self, key: str) -> Entry | None:
        """The entry that waits for the archive, if it still counts."""
        item = self._outbox.get(key)
        if item is None or item.entry is None:
            return None
        if item.expires_at_ns is not None and item.expires_at_ns <= self._clock():
            return None
        if item.entry.tags and not self._archived.allows(key, item.version, item.entry.tags):
            return None
        return item.entry

    def fitting(self, keys: Sequence[str]) -> int:
        """How many of the first keys have entries that fit into RAM together."""
        room_bytes = self._memory.limit_bytes
        for place, key in enumerate(keys):
            found = self.peek(key)
            if found is not None:
                room_bytes -= found[0].size_bytes
                if room_bytes < 0:
                    return place
        return len(keys)

    def prepare(self, entry: Entry) -> None:
        """Tell files, outbox, the entry and its parent that it will be kept."""
        if isinstance(entry.value, bytes):
            entry.value = self._files.keep(entry.value)
        if isinstance(entry.value, ValueFile):
            self._value_files.add(entry.value)
        self._outbox.largest_bytes = max(self._outbox.largest_bytes, entry.size_bytes)
        self.has_seen_tokens = self.has_seen_tokens or entry.prefix_tokens is not None
        used = self._learner.kept(entry.key, self._clock())
        entry.earlier_uses = max(0, used - entry.access_count)
        parent = None if entry.parent is None else self._memory.peek(entry.parent)
        if parent is not None:
            parent.extended = True

    def keep(self, entry: Entry) -> None:
        """Have `entry` in RAM; what leaves for it is evicted.

        Raises:
            ValueError: larger than the cache; RAM is as it was.
        """
        self.prepare(entry)
        for evicted in self._memory.store(entry):
            self._counters.evictions += 1
            self._evictions.evict(evicted, "capacity")

    def keep_chain(self, chain: Sequence[Entry]) -> None:
        """Have the entries of one chain, root first, in RAM; each was given to `prepare` before.

        Raises:
            ValueError: as `keep`.
        """
        for entry in chain[:-1]:
            entry.extended = True
        for evicted in self._memory.store_many(chain):
            self._counters.evictions += 1
            self._evictions.evict(evicted, "capacity")

    def keep_if_room(self, entry: Entry) -> None:
        """Like `keep`, where `Limits.has_room`."""
        if self._limits.has_room(entry):
            self.keep(entry)

    def return_chain(self, keys: Sequence[str]) -> None:
        """Have what waits of a chain, root first, return to RAM as far as RAM has room for all."""
        for key in keys[: self.fitting(keys)]:
            found = self.peek(key)
            if found is None:
                return
            entry, where = found
            if where == "outbox":
                self.keep_if_room(entry)

    def lose(self, entry: Entry) -> None:
        """Forget an entry whose file somebody else has removed; the archive does not get it.

        Also where it has expired, so that nobody waits for it. Nothing is lost where it was
        replaced, deleted or cleared while it was read.
        """
        item = self._outbox.get(entry.key)
        waits = item is not None and item.entry is entry
        is_in_ram = self._memory.peek(entry.key) is entry
        if not waits and not is_in_ram:
            return
        log.error("value_file_lost", namespace=self._name, key=entry.key)
        if is_in_ram:
            self._memory.remove(entry.key)
        if item is not None and waits:
            self._outbox.lost += not item.acknowledged
            self._outbox.drop(entry.key)

    async def delete_tagged(self, tag: str, version: str) -> int:
        """Remove what has `tag` and a version below that, in slices; how many entries it was."""
        deleted = self._drop_waiting(tag, version)
        for number in range(SHARDS):
            for entry in self._memory.shard(number):
                if tag in entry.tags and entry.version < version:
                    self._memory.remove(entry.key)
                    entry.retire()
                    deleted.add(entry.key)
            await asyncio.sleep(0)
        deleted |= self._drop_waiting(tag, version)  # evicted meanwhile
        return len(deleted)

    def clear_in_steps(self) -> Iterator[None]:
        """Hold nothing after the first step; each of the others frees some of what was held."""
        self._outbox.forget_values()
        files = list(self._value_files)
        freeing = self._memory.clear_in_steps()
        next(freeing)
        self._limits.limit_memory()
        yield
        for file in files:
            file.remove()
            yield
        yield from freeing

    def remove_files(self) -> None:
        """Have every client that has a value open see that it no longer counts: all ends here."""
        for file in list(self._value_files):
            file.remove()

    def _drop_waiting(self, tag: str, version: str) -> set[str]:
        entries = self._outbox.tagged(tag, version)
        for entry in entries:
            self._outbox.drop(entry.key)
            entry.retire()
        return {entry.key for entry in entries}


def retire_unless_held(memory: EntryStore, item: Item) -> None:
    """`item` has left the outbox: who is sending it reads on, but nobody may take it for cached."""
    in_ram = memory.peek(item.key)
    if item.entry is not None and (in_ram is None or in_ram.value is not item.entry.value):
        item.entry.retire()
