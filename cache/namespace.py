"""One namespace as its owner keeps it: versions, generation, RAM, outbox. No I/O."""

import asyncio
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import msgspec
import structlog

from cache.archived import ArchivedKeys
from cache.clients import Clients
from cache.contents import SHARDS
from cache.counters import Counters
from cache.entry import Entry
from cache.entry_store import EntryStore
from cache.evictions import Evictions
from cache.files import Files
from cache.hot import KEPT, HotEntries
from cache.latency import Latencies
from cache.outbox import Item, Outbox
from cache.restores import Restore, Restores
from cache.reuse import ReuseLearner
from cache.settings import MIB, CacheSettings
from cache.tombstones import Tombstones
from cache.value_file import ValueFile
from schemas.lmcache import LmcacheConfig
from schemas.protocols import Clock
from schemas.units import SECOND_NS

log = structlog.get_logger()

Where = Literal["ram", "outbox"]


class VersionConflictError(Exception):
    """A compare-and-set lost: `current` is the version that is here, None for no entry."""

    def __init__(self, expected: str, current: str | None) -> None:
        here = f"{current} is here" if current else "no such entry is here"
        super().__init__(f"version {expected} expected, {here}")
        self.current = current


class DisabledError(Exception):
    """The configuration has `enabled` off: nothing is kept."""


def configured(settings: CacheSettings) -> LmcacheConfig:
    """The configuration that the settings give, before anybody changes it."""
    return LmcacheConfig(
        max_size_mb=settings.max_memory_mb, eviction_policy=settings.eviction_policy
    )


class Namespace:
    """The state behind the endpoints of one namespace.

    Versions are `<epoch>-<counter>` in hexadecimal: they compare as text, and never repeat,
    because every owner's epoch is above its predecessor's. What leaves RAM for room goes to the
    outbox. A write of a key that may be archived puts a tombstone into the outbox, so that the
    older copy never comes back.
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
        self.counters = Counters()
        self.memory = EntryStore(
            settings.max_memory_mb * MIB, settings.eviction_policy, clock=clock
        )
        self.outbox = Outbox(settings.outbox_max_bytes, on_left=self._left)
        self.learner = ReuseLearner(settings.ttl.watched_evictions)
        self.archive_mode = settings.archive_mode
        self.archiving = self.archive_mode == "on"
        self.restores = Restores()
        self.archived = ArchivedKeys(known=not self.archiving, on_settled=self.restores.settled)
        self.tombstones = Tombstones(
            self.archived, self.outbox, message_ids, clock, archiving=self.archiving
        )
        self.evictions = Evictions(
            name, settings, self.learner, self.archived, self.outbox, message_ids, clock
        )
        self._settings = settings
        self._slides = settings.ttl.deadline == "sliding"
        self._clock = clock
        self.on_write: Callable[[str, str], None] = lambda _key, _version: None
        self._writes = 0
        self.config = LmcacheConfig()
        self.clients = Clients()
        self.hot = HotEntries(self.memory.peek)
        self.latencies = Latencies()
        self.has_seen_tokens = False
        self._value_files: weakref.WeakSet[ValueFile] = weakref.WeakSet()
        self.configure(config or configured(settings))

    def configure(self, config: LmcacheConfig) -> None:
        """Use `config` from now on; what is in RAM beyond its limit leaves by `shrink`."""
        self.config = config
        if config.eviction_policy != self.memory.policy_name:
            self.memory.set_policy(config.eviction_policy)
        self._limit_memory()

    @property
    def surplus_bytes(self) -> int:
        """What RAM holds beyond the configured limit."""
        return max(0, self.memory.used_bytes - self._configured_bytes)

    def shrink(self) -> None:
        """Evict one entry, and lower the limit in force as far as the rest allows."""
        entry = self.memory.take_next()
        self._limit_memory()
        if entry is not None:
            self.counters.evictions += 1
            self.evictions.evict(entry, "shrink")

    def sweep(self, keys: Iterable[str]) -> tuple[list[Entry], list[Entry]]:
        """Take the expired and the worthless entries of `keys` out of RAM, and return them."""
        expired, worthless = self.memory.sweep(keys, self.is_worthless)
        for entry in (*expired, *worthless):
            if isinstance(entry.value, ValueFile):
                entry.value.remove()
        return expired, worthless

    def is_worthless(self, entry: Entry, now_ns: int) -> bool:
        """Whether the archive would have dropped `entry` by now, evicted at its last access.

        One that was put with a TTL is worth what its writer said, and one that was used within
        `ttl.min_seconds` is worth keeping.
        """
        idle_ns = now_ns - entry.last_accessed_ns
        if entry.ttl_seconds is not None or idle_ns <= self._settings.ttl.min_seconds * SECOND_NS:
            return False
        deadline_ns = self.evictions.decide(entry, entry.last_accessed_ns).deadline_ns
        return deadline_ns is None or deadline_ns < now_ns

    def caches(self, entry: Entry) -> bool:
        """Whether an entry like this one is kept: its prefix may be too short."""
        return (
            not self.config.enable_prefix_caching
            or entry.prefix_tokens is None
            or entry.prefix_tokens >= self.config.min_prefix_length
        )

    def refuses(self, size_bytes: int) -> bool:
        """Whether nothing new is kept, because what it evicts could be lost to the archive."""
        return self._settings.archive_when_full == "refuse" and not self.outbox.fits(size_bytes)

    @property
    def value_limit(self) -> tuple[int, str]:
        """Largest value that is taken, in bytes, and the setting that says so."""
        settings = self._settings
        limits = [
            (settings.max_value_bytes, "cache.max_value_bytes"),
            (self.memory.limit_bytes, "max_size_mb"),
        ]
        if self.archiving:
            limits.append((settings.outbox_max_bytes // 2, "half of cache.outbox_max_bytes"))
        return min(limits)

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
        fitting = self._fitting(keys) if waits else len(keys)
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
        elif self.config.enabled:
            self.counters.misses += 1

    def _use(self, key: str, *, returns: bool = True) -> Entry | None:
        if not self.config.enabled:
            return None
        entry = self.memory.lookup(key)
        if entry is None:
            self.learner.asked(key, self._clock())
            entry = self._waiting(key)
            if entry is None:
                return None
            entry.access_count += 1
            entry.last_accessed_ns = self._clock()
            if returns:
                self._keep_if_room(entry)
        self.hot.note(key, entry.access_count)
        if self._slides:
            _slide(entry)
        return entry

    def match(self, keys: Sequence[str]) -> int:
        """How many keys of a chain are here, root first; counted as hits, the next one as a miss.

        What waits for the archive returns to RAM, so that the chain can be used as one, as far as
        RAM has room for all of it: the head must not leave for its tail.
        """
        if not self.config.enabled:
            return 0
        matched = self.memory.match_prefix(keys)
        if matched < len(keys) and self._waiting(keys[matched]) is not None:
            self._return_chain(keys)
            matched = self.memory.match_prefix(keys)
        if self._slides:
            for key in keys[:matched]:
                entry = self.memory.peek(key)
                if entry is not None:
                    _slide(entry)
        self.counters.hits += matched
        self.counters.misses += matched < len(keys)
        return matched

    def _return_chain(self, keys: Sequence[str]) -> None:
        for key in keys[: self._fitting(keys)]:
            found = self.peek(key)
            if found is None:
                return
            entry, where = found
            if where == "outbox":
                self._keep_if_room(entry)

    def _fitting(self, keys: Sequence[str]) -> int:
        """How many of the first keys have entries that fit into RAM together."""
        room_bytes = self.memory.limit_bytes
        for place, key in enumerate(keys):
            found = self.peek(key)
            if found is not None:
                room_bytes -= found[0].size_bytes
                if room_bytes < 0:
                    return place
        return len(keys)

    def peek(self, key: str) -> tuple[Entry, Where] | None:
        """The entry and where it is; counts nothing and changes no order."""
        entry = self.memory.peek(key)
        if entry is not None:
            return entry, "ram"
        entry = self._waiting(key)
        return None if entry is None else (entry, "outbox")

    def put(self, entry: Entry, expected_version: str | None = None) -> Item | None:
        """Keep `entry` as a new version; returns the tombstone of what may be archived.

        One that the cache does not keep (`caches`) takes what its key had with it.

        Raises:
            DisabledError: the cache is off; nothing changed.
            VersionConflictError: `expected_version` is not the version that is here.
            OutboxCrowdedError: it needs a tombstone, and there are too many; nothing changed.
            ValueError: larger than the cache, or it is full and evicts nothing by itself;
                nothing changed.
        """
        if not self.config.enabled:
            raise DisabledError
        self.tombstones.check_room(entry.key)
        self.check_version(entry.key, expected_version)
        replaced = self.peek(entry.key)
        if not self.caches(entry):
            self.memory.remove(entry.key)
            entry.version = self._next_version()
            if replaced is not None:
                replaced[0].retire()
            return self._supersede(entry.key, entry.version)
        if not self.config.enable_prefix_caching:
            entry.parent = None
        self.check_room(entry.key, entry.size_bytes)
        entry.version = self._next_version()
        self._keep(entry)
        if replaced is not None:
            replaced[0].retire()
        self._count_put(entry)
        return self._supersede(entry.key, entry.version)

    def check_room(self, key: str, size_bytes: int) -> None:
        """Whether an entry of `key` finds room, should the cache not evict by itself.

        Raises:
            ValueError: it does not; the text names the ways out.
        """
        too_large_for_any = size_bytes > self.memory.limit_bytes
        if self.config.auto_eviction or too_large_for_any:
            return
        if self._room_bytes(key) < size_bytes:
            raise ValueError(
                f"the cache is full: {self.memory.used_bytes} of {self._configured_bytes} bytes, "
                "and auto_eviction is off; delete something, optimize, or raise max_size_mb"
            )

    def check_version(self, key: str, expected_version: str | None) -> None:
        """Compare the version that is here with the one a writer expects; None = any.

        Raises:
            VersionConflictError: it is another one.
        """
        if expected_version is not None:
            found = self.peek(key)
            current = None if found is None else found[0].version
            if current != expected_version:
                raise VersionConflictError(expected_version, current)

    def keeps_chains(self, entries: Sequence[Entry]) -> bool:
        """Whether these can be put as one chain, or the configuration decides on each."""
        config = self.config
        return (
            config.enabled
            and config.enable_prefix_caching
            and config.auto_eviction
            and all(self.caches(entry) for entry in entries)
        )

    def put_chain(self, entries: Sequence[Entry]) -> list[Item | None]:
        """Keep the entries of one chain, root first, as new versions; the tombstone of each.

        Only for entries that `keeps_chains`.

        Raises:
            OutboxCrowdedError: one needs a tombstone, and there are too many; nothing changed.
            ValueError: one is larger than the cache; nothing changed.
        """
        for entry in entries:
            self.tombstones.check_room(entry.key)
            if entry.size_bytes > self.memory.limit_bytes:
                raise ValueError(
                    f"entry of {entry.size_bytes} bytes exceeds cache limit of "
                    f"{self.memory.limit_bytes} bytes"
                )
        replaced = [found[0] for entry in entries if (found := self.peek(entry.key)) is not None]
        tombstones = []
        for entry in entries:
            entry.version = self._next_version()
            tombstones.append(self._supersede(entry.key, entry.version))
            self._count_put(entry)
            self._prepare(entry)
        for entry in entries[:-1]:
            entry.extended = True
        # Only now: what is too much for RAM goes to the outbox, and is not superseded.
        for evicted in self.memory.store_many(entries):
            self.counters.evictions += 1
            self.evictions.evict(evicted, "capacity")
        for entry in replaced:
            entry.retire()
        return tombstones

    def delete(self, key: str) -> tuple[bool, str, Item | None]:
        """Remove `key`: whether it was here, the deletion's version, and the tombstone if any.

        Raises:
            OutboxCrowdedError: it needs a tombstone, and there are too many; nothing changed.
        """
        self.tombstones.check_room(key)
        found = self.peek(key)
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
        deleted = self._drop_waiting(tag, version)
        for number in range(SHARDS):
            for entry in self.memory.shard(number):
                if tag in entry.tags and entry.version < version:
                    self.memory.remove(entry.key)
                    entry.retire()
                    deleted.add(entry.key)
            await asyncio.sleep(0)
        deleted |= self._drop_waiting(tag, version)  # evicted meanwhile
        return len(deleted), version, tombstone

    def _drop_waiting(self, tag: str, version: str) -> set[str]:
        entries = self.outbox.tagged(tag, version)
        for entry in entries:
            self.outbox.drop(entry.key)
            entry.retire()
        return {entry.key for entry in entries}

    async def clear(self, generation: int) -> tuple[int, Item | None]:
        """Begin a generation: empty RAM and outbox, and leave everything archived behind.

        That is so at once; what was there is freed in slices.

        Returns:
            How many entries left RAM, and what tells the archive.
        """
        self.generation = generation
        self.archived.forget()
        self.outbox.forget_values()
        self.outbox.forget_tombstones()
        self.restores.cleared()
        tombstone = self.tombstones.of_all(self._next_version())
        entries, files = len(self.memory), list(self._value_files)
        freeing = self.memory.clear_in_steps()
        next(freeing)
        self._limit_memory()
        for file in files:
            file.remove()
            await asyncio.sleep(0)
        for _ in freeing:
            await asyncio.sleep(0)
        return entries, tombstone

    def remove_files(self) -> None:
        """Have every client that has a value open see that it no longer counts: all ends here."""
        for file in list(self._value_files):
            file.remove()

    def touch(self, key: str, version: str, hits: int) -> Entry | None:
        """Count reads of a value that a client did without asking; None: it has none to read."""
        found = self.peek(key)
        if found is None or found[0].version != version or not self.config.enabled:
            return None
        entry = self._use(key)
        if entry is not None:
            entry.access_count += hits - 1
            self.count(entry, hits)
        return entry

    def lose(self, entry: Entry) -> None:
        """Forget an entry whose file somebody else has removed; the archive does not get it.

        Nothing is lost where it was replaced, deleted or cleared while it was read.
        """
        found = self.peek(entry.key)
        if found is None or found[0] is not entry:
            return
        log.error("value_file_lost", namespace=self.name, key=entry.key)
        self.memory.remove(entry.key)
        item = self.outbox.get(entry.key)
        if item is not None and item.entry is entry:
            self.outbox.lost += not item.acknowledged
            self.outbox.drop(entry.key)

    def may_restore(self, key: str) -> bool:
        """Whether the archive may hold `key` and can be believed."""
        return (
            self.config.enabled
            and self.archiving
            and self.archived.caught_up
            and self.archived.may_hold(key)
        )

    def finish_restore(self, key: str, restore: Restore, entry: Entry | None) -> Entry | None:
        """What to answer: the restored entry, now in RAM, what was written meanwhile, or None.

        `entry` is refused where the key was written or the namespace cleared while the archive
        was asked, and where it is older than a tombstone of the key, or expired.
        """
        self.restores.end(key, restore)
        found = self.peek(key)
        if found is not None:
            restore.answer = found[0]
        elif entry is not None:
            if (
                not restore.allows(entry)
                or not self.archived.allows(key, entry.version, entry.tags)
                or entry.expired(self._clock())
            ):
                self.counters.restores_refused += 1
            else:
                self.counters.restores += 1
                self.counters.restored_bytes += entry.value_bytes
                self.counters.restored_cost_seconds += entry.cost_seconds or 0.0
                restore.answer = entry
                bound, before = restore.may_evict_bytes, self.memory.used_bytes + entry.size_bytes
                if bound is None or before - self.memory.limit_bytes <= bound:
                    self._keep_if_room(entry)
                    restore.evicted_bytes = max(0, before - self.memory.used_bytes)
        restore.finished.set()
        return restore.answer

    async def evict_everything(self, reason: str) -> None:
        """Send all of RAM to the outbox, as fast as that has room: none is lost."""
        while len(self.memory):
            await self.outbox.roomy()
            entry = self.memory.take_next()
            if entry is not None:
                self.evictions.evict(entry, reason)

    async def evict_hottest(self, reason: str) -> None:
        """Send what is hot in RAM to the outbox, hottest first, as fast as that has room."""
        for entry in self.hot.top(KEPT):
            await self.outbox.roomy()
            if self.memory.remove(entry.key) is entry:
                self.evictions.evict(entry, reason)

    @property
    def used_mb(self) -> float:
        """RAM used, in units of 1024·1024 bytes."""
        return self.memory.used_bytes / MIB

    def _next_version(self) -> str:
        self._writes += 1
        return f"{self.epoch_ms:012x}-{self._writes:010x}"

    def _waiting(self, key: str) -> Entry | None:
        item = self.outbox.get(key)
        if item is None or item.entry is None:
            return None
        if item.expires_at_ns is not None and item.expires_at_ns <= self._clock():
            return None
        if item.entry.tags and not self.archived.allows(key, item.version, item.entry.tags):
            return None
        return item.entry

    def _keep_if_room(self, entry: Entry) -> None:
        """Like `_keep`, but never at the price of an eviction that puts are refused to save."""
        fits = entry.size_bytes <= self.memory.limit_bytes and not self.refuses(entry.size_bytes)
        if fits and (self.config.auto_eviction or self._room_bytes(entry.key) >= entry.size_bytes):
            self._keep(entry)

    def _count_put(self, entry: Entry) -> None:
        self.counters.puts += 1
        self.counters.put_bytes += entry.value_bytes
        if entry.prefix_tokens is not None:
            self.counters.tokens_computed += entry.prefix_tokens

    def _keep(self, entry: Entry) -> None:
        self._prepare(entry)
        for evicted in self.memory.store(entry):
            self.counters.evictions += 1
            self.evictions.evict(evicted, "capacity")

    def _prepare(self, entry: Entry) -> None:
        """What files, outbox, the entry and its parent are told before it is kept."""
        if isinstance(entry.value, bytes):
            entry.value = self.files.keep(entry.value)
        if isinstance(entry.value, ValueFile):
            self._value_files.add(entry.value)
        self.outbox.largest_bytes = max(self.outbox.largest_bytes, entry.size_bytes)
        self.has_seen_tokens = self.has_seen_tokens or entry.prefix_tokens is not None
        used = self.learner.kept(entry.key, self._clock())
        entry.earlier_uses = max(0, used - entry.access_count)
        parent = None if entry.parent is None else self.memory.peek(entry.parent)
        if parent is not None:
            parent.extended = True

    def _supersede(self, key: str, version: str) -> Item | None:
        self.on_write(key, version)
        self.restores.written(key)
        self.outbox.drop(key)
        return self.tombstones.of_key(key, version)

    def _left(self, item: Item) -> None:
        """Whoever is still sending the value reads on, but nobody may take it for cached."""
        in_ram = self.memory.peek(item.key)
        if item.entry is not None and (in_ram is None or in_ram.value is not item.entry.value):
            item.entry.retire()

    @property
    def _configured_bytes(self) -> int:
        return max(1, int(self.config.max_size_mb * MIB))

    def _limit_memory(self) -> None:
        self.memory.limit_bytes = max(self._configured_bytes, self.memory.used_bytes)

    def _room_bytes(self, key: str) -> int:
        """What an entry of `key` may take without an eviction."""
        present = self.memory.peek(key)
        own = 0 if present is None else present.size_bytes
        return self._configured_bytes - self.memory.used_bytes + own


def _slide(entry: Entry) -> None:
    """Its time to live starts anew with this hit."""
    if entry.ttl_seconds:
        entry.expires_at_ns = entry.last_accessed_ns + int(entry.ttl_seconds * SECOND_NS)
