"""One namespace as its owner keeps it: reads and writes, versions, generation. No I/O."""

import asyncio
import functools
from collections.abc import Callable, Iterator, Sequence

import msgspec

from cache.archived import ArchivedKeys
from cache.clients import Clients
from cache.counters import Counters
from cache.entry import Entry
from cache.entry_store import EntryStore
from cache.evictions import Evictions
from cache.files import Files
from cache.holdings import Holdings, Where, retire_unless_held
from cache.hot import HotEntries
from cache.latency import Latencies
from cache.limits import Limits, configured
from cache.outbox import Item, Outbox
from cache.restores import Restores
from cache.reuse import ReuseLearner
from cache.settings import MIB, CacheSettings
from cache.tombstones import Tombstones
from cache.trimming import Trimming
from schemas.lmcache import LmcacheConfig
from schemas.protocols import Clock
from schemas.units import SECOND_NS


class VersionConflictError(Exception):
    """A compare-and-set lost: `current` is the version that is here, None for no entry."""

    def __init__(self, expected: str, current: str | None) -> None:
        here = f"{current} is here" if current else "no such entry is here"
        super().__init__(f"version {expected} expected, {here}")
        self.current = current


class DisabledError(Exception):
    """The configuration has `enabled` off: nothing is kept."""


class Namespace:
    """The state behind the endpoints of one namespace.

    Versions are `<epoch>-<counter>` in hexadecimal: they compare as text, and never repeat,
    because every owner's epoch is above its predecessor's. What leaves RAM for room goes to the
    outbox. A write of a key that may be archived puts a tombstone into the outbox, so that the
    older copy never comes back.

    Here are its reads and writes. `limits` says what is taken in, `holdings` has it in RAM or
    outbox, `trimming` makes RAM smaller, and `restores` brings back from the archive.
    """

    def __init__(
        self,
        name: str,
        settings: CacheSettings,
        config: LmcacheConfig | None = None,
        *,
        epoch_ms: int,
        generation: int,
        message_ids: Iterator[str],
        clock: Clock,
        files: Files | None = None,
    ) -> None:
        self.name = name
        self.files = files or Files(msgspec.structs.replace(settings, same_host=False))
        self.epoch_ms = epoch_ms
        self.generation = generation
        self.clears = 0
        """Since this instance owns it."""
        self.counters = Counters()
        self.memory = EntryStore(
            settings.max_memory_mb * MIB, settings.eviction_policy, clock=clock
        )
        self.outbox = Outbox(
            settings.outbox_max_bytes, on_left=functools.partial(retire_unless_held, self.memory)
        )
        self.limits = Limits(settings, config or configured(settings), self.memory, self.outbox)
        self.learner = ReuseLearner(settings.ttl.watched_evictions)
        self.archive_mode = settings.archive_mode
        self.archiving = self.archive_mode == "on"
        self.archived = ArchivedKeys(known=not self.archiving)
        self.tombstones = Tombstones(
            self.archived, self.outbox, message_ids, clock, archiving=self.archiving
        )
        self.evictions = Evictions(
            name, settings, self.learner, self.archived, self.outbox, message_ids, clock
        )
        self.holdings = Holdings(
            name,
            self.memory,
            self.outbox,
            self.files,
            self.limits,
            self.learner,
            self.archived,
            self.evictions,
            self.counters,
            clock,
        )
        self.restores = Restores(
            self.memory,
            self.limits,
            self.holdings,
            self.archived,
            self.counters,
            clock,
            archiving=self.archiving,
        )
        self.archived.on_settled = self.restores.settled
        self.hot = HotEntries(self.memory.peek)
        self.trimming = Trimming(
            settings,
            self.memory,
            self.outbox,
            self.limits,
            self.evictions,
            self.hot,
            self.counters,
        )
        self.clients = Clients()
        self.latencies = Latencies()
        self.on_write: Callable[[str, str], None] = lambda _key, _version: None
        self._slides = settings.ttl.deadline == "sliding"
        self._clock = clock
        self._writes = 0

    def find(self, key: str) -> Entry | None:
        """The entry, counted as a hit or a miss; one that waits for the archive returns to RAM.

        None, and not counted, while the configuration has `enabled` off.
        """
        entry = self._use(key)
        self.count(entry)
        return entry

    def find_many(self, keys: Sequence[str]) -> list[Entry | None]:
        """The entries as `find` has them, for the caller to `count`.

        The last is looked up first: where the keys are a chain, its tail must not be the one
        used last. What waits for the archive returns to RAM as far as all before it fits, too.
        """
        waits = any(self.outbox.get(key) is not None for key in keys)
        fitting = self.holdings.fitting(keys) if waits else len(keys)
        places = reversed(range(len(keys)))
        found = [self._use(keys[place], returns=place < fitting) for place in places]
        found.reverse()
        return found

    def count(self, entry: Entry | None, times: int = 1) -> None:
        """A look-up is answered with `entry`, so many `times`, or is a miss."""
        if entry is not None:
            self.counters.hits += times
            self.counters.hit_bytes += times * entry.value_bytes
            self.counters.tokens_served += times * (entry.prefix_tokens or 0)
        elif self.limits.config.enabled:
            self.counters.misses += 1

    def _use(self, key: str, *, returns: bool = True) -> Entry | None:
        if not self.limits.config.enabled:
            return None
        entry = self.memory.lookup(key)
        if entry is None:
            self.learner.asked(key, self._clock())
            entry = self.holdings.waiting(key)
            if entry is None:
                return None
            entry.access_count += 1
            entry.last_accessed_ns = self._clock()
            if returns:
                self.holdings.keep_if_room(entry)
        self.hot.note(key, entry.access_count)
        if self._slides:
            _slide(entry)
        return entry

    def match(self, keys: Sequence[str]) -> int:
        """How many keys of a chain are here, root first; counted as hits, the next one as a miss.

        What waits for the archive returns to RAM, so that the chain can be used as one, as far as
        RAM has room for all of it: the head must not leave for its tail.
        """
        if not self.limits.config.enabled:
            return 0
        matched = self.memory.match_prefix(keys)
        if matched < len(keys) and self.holdings.waiting(keys[matched]) is not None:
            self.holdings.return_chain(keys)
            matched = self.memory.match_prefix(keys)
        if self._slides:
            for key in keys[:matched]:
                entry = self.memory.peek(key)
                if entry is not None:
                    _slide(entry)
        self.counters.hits += matched
        self.counters.misses += matched < len(keys)
        return matched

    def peek(self, key: str) -> tuple[Entry, Where] | None:
        """The entry and where it is; counts nothing and changes no order."""
        return self.holdings.peek(key)

    def put(self, entry: Entry, expected_version: str | None = None) -> Item | None:
        """Keep `entry` as a new version; returns the tombstone of what may be archived.

        One that the cache does not keep (`Limits.caches`) takes what its key had with it.

        Raises:
            DisabledError: the cache is off; nothing changed.
            VersionConflictError: `expected_version` is not the version that is here.
            OutboxCrowdedError: it needs a tombstone, and there are too many; nothing changed.
            ValueError: larger than the cache, or it is full and evicts nothing by itself;
                nothing changed.
        """
        if not self.limits.config.enabled:
            raise DisabledError
        self.tombstones.check_room(entry.key)
        self.check_version(entry.key, expected_version)
        replaced = self.holdings.peek(entry.key)
        if not self.limits.caches(entry):
            self.memory.remove(entry.key)
            entry.version = self._next_version()
            if replaced is not None:
                replaced[0].retire()
            return self._supersede(entry.key, entry.version)
        if not self.limits.config.enable_prefix_caching:
            entry.parent = None
        self.limits.check_room(entry.key, entry.size_bytes)
        entry.version = self._next_version()
        self.holdings.keep(entry)
        if replaced is not None:
            replaced[0].retire()
        self._count_put(entry)
        return self._supersede(entry.key, entry.version)

    def check_version(self, key: str, expected_version: str | None) -> None:
        """Compare the version that is here with the one a writer expects; None = any.

        Raises:
            VersionConflictError: it is another one.
        """
        if expected_version is not None:
            found = self.holdings.peek(key)
            current = None if found is None else found[0].version
            if current != expected_version:
                raise VersionConflictError(expected_version, current)

    def put_chain(self, entries: Sequence[Entry]) -> list[Item | None]:
        """Keep the entries of one chain, root first, as new versions; the tombstone of each.

        Only for entries that `Limits.keeps_chains`.

        Raises:
            OutboxCrowdedError: one needs a tombstone, and there are too many; nothing changed.
            ValueError: one is larger than the cache; nothing changed.
        """
        peek, limit_bytes = self.holdings.peek, self.memory.limit_bytes
        for entry in entries:
            self.tombstones.check_room(entry.key)
            if entry.size_bytes > limit_bytes:
                raise ValueError(
                    f"entry of {entry.size_bytes} bytes exceeds cache limit of {limit_bytes} bytes"
                )
        replaced = [found[0] for entry in entries if (found := peek(entry.key)) is not None]
        tombstones = []
        for entry in entries:
            entry.version = self._next_version()
            tombstones.append(self._supersede(entry.key, entry.version))
            self._count_put(entry)
            self.holdings.prepare(entry)
        # Only now: what is too much for RAM goes to the outbox, and is not superseded.
        self.holdings.keep_chain(entries)
        for entry in replaced:
            entry.retire()
        return tombstones

    def delete(self, key: str) -> tuple[bool, str, Item | None]:
        """Remove `key`: whether it was here, the deletion's version, and the tombstone if any.

        Raises:
            OutboxCrowdedError: it needs a tombstone, and there are too many; nothing changed.
        """
        self.tombstones.check_room(key)
        found = self.holdings.peek(key)
        self.memory.remove(key)
        if found is not None:
            found[0].retire()
        version = self._next_version()
        return found is not None, version, self._supersede(key, version)

    async def delete_tag(self, tag: str) -> tuple[int, str, Item | None]:
        """Remove all that was put with `tag` until now, archive included; O(entries), in slices.

        Returns:
            How many entries left RAM and outbox, the deletion's version, and the tombstone.

        Raises:
            OutboxCrowdedError: it needs a tombstone, and there are too many; nothing changed.
        """
        self.tombstones.check_room_for_tag()
        version = self._next_version()
        tombstone = self.tombstones.of_tag(tag, version)
        self.restores.tag_deleted(tag)
        entries = await self.holdings.delete_tagged(tag, version)
        return entries, version, tombstone

    async def clear(self, generation: int) -> tuple[int, Item | None]:
        """Begin a generation: empty RAM and outbox, and leave everything archived behind.

        That is so at once; what was there is freed in slices.

        Returns:
            How many entries left RAM, and what tells the archive.
        """
        self.generation = generation
        self.clears += 1
        self.archived.forget()
        entries = len(self.memory)
        freeing = self.holdings.clear_in_steps()
        next(freeing)
        self.outbox.forget_tombstones()
        self.restores.cleared()
        tombstone = self.tombstones.of_all(self._next_version())
        for _ in freeing:
            await asyncio.sleep(0)
        return entries, tombstone

    def touch(self, key: str, version: str, hits: int) -> Entry | None:
        """Count reads of a value that a client did without asking; None: it has none to read."""
        found = self.holdings.peek(key)
        if found is None or found[0].version != version or not self.limits.config.enabled:
            return None
        entry = self._use(key)
        if entry is not None:
            entry.access_count += hits - 1
            self.count(entry, hits)
        return entry

    def _next_version(self) -> str:
        self._writes += 1
        return f"{self.epoch_ms:012x}-{self._writes:010x}"

    def _count_put(self, entry: Entry) -> None:
        self.counters.puts += 1
        self.counters.put_bytes += entry.value_bytes
        if entry.prefix_tokens is not None:
            self.counters.tokens_computed += entry.prefix_tokens

    def _supersede(self, key: str, version: str) -> Item | None:
        self.on_write(key, version)
        self.restores.written(key)
        self.outbox.drop(key)
        return self.tombstones.of_key(key, version)


def _slide(entry: Entry) -> None:
    """Its time to live starts anew with this hit."""
    if entry.ttl_seconds:
        entry.expires_at_ns = entry.last_accessed_ns + int(entry.ttl_seconds * SECOND_NS)
