"""What leaves RAM though nothing comes: for a lower limit, as worthless, or because it all ends."""

from collections.abc import Iterable

from cache.counters import Counters
from cache.entry import Entry
from cache.entry_store import EntryStore
from cache.evictions import Evictions
from cache.hot import KEPT, HotEntries
from cache.limits import Limits
from cache.outbox import Outbox
from cache.settings import CacheSettings
from cache.value_file import ValueFile
from schemas.units import SECOND_NS


class Trimming:
    """Takes entries out of RAM, for the archive or for good."""

    def __init__(
        self,
        settings: CacheSettings,
        memory: EntryStore,
        outbox: Outbox,
        limits: Limits,
        evictions: Evictions,
        hot: HotEntries,
        counters: Counters,
    ) -> None:
        self._worthy_ns = settings.ttl.min_seconds * SECOND_NS
        self._memory = memory
        self._outbox = outbox
        self._limits = limits
        self._evictions = evictions
        self._hot = hot
        self._counters = counters

    def shrink(self) -> None:
        """Evict one entry, and lower the limit in force as far as the rest allows."""
        entry = self._memory.take_next()
        self._limits.limit_memory()
        if entry is not None:
            self._counters.evictions += 1
            self._evictions.evict(entry, "shrink")

    def sweep(self, keys: Iterable[str]) -> tuple[list[Entry], list[Entry]]:
        """Take the expired and the worthless entries of `keys` out of RAM, and return them."""
        expired, worthless = self._memory.sweep(keys, self._is_worthless)
        for entry in (*expired, *worthless):
            if isinstance(entry.value, ValueFile):
                entry.value.remove()
        return expired, worthless

    async def evict_everything(self, reason: str) -> None:
        """Send all of RAM to the outbox, as fast as that has room: none is lost."""
        while len(self._memory):
            await self._outbox.roomy()
            entry = self._memory.take_next()
            if entry is not None:
                self._evictions.evict(entry, reason)

    async def evict_hottest(self, reason: str) -> None:
        """Send what is hot in RAM to the outbox, hottest first, as fast as that has room."""
        for entry in self._hot.top(KEPT):
            await self._outbox.roomy()
            if self._memory.remove(entry.key) is entry:
                self._evictions.evict(entry, reason)

    def _is_worthless(self, entry: Entry, now_ns: int) -> bool:
        """Whether the archive would have dropped `entry` by now, evicted at its last access.

        One that was put with a TTL is worth what its writer said, and one that was used within
        `ttl.min_seconds` is worth keeping.
        """
        idle_ns = now_ns - entry.last_accessed_ns
        if entry.ttl_seconds is not None or idle_ns <= self._worthy_ns:
            return False
        deadline_ns = self._evictions.decide(entry, entry.last_accessed_ns).deadline_ns
        return deadline_ns is None or deadline_ns < now_ns
