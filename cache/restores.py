"""Questions to the archive, one for each key: whether to ask, and what an answer is worth."""

import asyncio

from cache.archived import ArchivedKeys
from cache.counters import Counters
from cache.entry import Entry
from cache.entry_store import EntryStore
from cache.holdings import Holdings
from cache.limits import Limits
from cache.outbox import Target
from schemas.protocols import Clock


class Restore:
    """One question to the archive, shared by all who miss the key meanwhile.

    `stale` once the key was written or the namespace cleared, `deleted_tags` since it was asked;
    `floors`, tombstones that the archive has confirmed since then: what it gives may be older.
    `answer`, `failed` (the archive did not answer) and `evicted_bytes` count once `finished`.
    """

    def __init__(self) -> None:
        self.stale = False
        self.deleted_tags: set[str] = set()
        self.floors: dict[Target, str] = {}
        self.may_evict_bytes: int | None = None
        self.answer: Entry | None = None
        self.failed = False
        self.evicted_bytes = 0
        self.finished = asyncio.Event()

    def allows(self, entry: Entry) -> bool:
        """Whether what the archive gave is not outdated by what happened meanwhile."""
        targets: list[Target] = [entry.key, *((tag,) for tag in entry.tags)]
        return (
            not self.stale
            and self.deleted_tags.isdisjoint(entry.tags)
            and all(entry.version >= self.floors.get(target, "") for target in targets)
        )


class Restores:
    """Those under way, and what comes of them; what is written or deleted makes them stale."""

    def __init__(
        self,
        memory: EntryStore,
        limits: Limits,
        holdings: Holdings,
        archived: ArchivedKeys,
        counters: Counters,
        clock: Clock,
        *,
        archiving: bool,
    ) -> None:
        self._memory = memory
        self._limits = limits
        self._holdings = holdings
        self._archived = archived
        self._counters = counters
        self._clock = clock
        self._archiving = archiving
        self._by_key: dict[str, Restore] = {}

    def __len__(self) -> int:
        """How many keys the archive is being asked for now."""
        return len(self._by_key)

    def possible(self, key: str) -> bool:
        """Whether the archive may hold `key` and can be believed."""
        return (
            self._limits.config.enabled
            and self._archiving
            and self._archived.caught_up
            and self._archived.may_hold(key)
        )

    def under_way(self, key: str) -> Restore | None:
        """The unanswered question for `key` that still is worth waiting for."""
        return self._by_key.get(key)

    def begin(self, key: str) -> Restore:
        """Note that the archive is asked for `key`; `finish` must follow, whatever comes."""
        restore = self._by_key[key] = Restore()
        return restore

    def finish(self, key: str, restore: Restore, entry: Entry | None) -> Entry | None:
        """What to answer: the restored entry, now in RAM, what was written meanwhile, or None.

        `entry` is refused where the key was written or the namespace cleared while the archive
        was asked, and where it is older than a tombstone of the key, or expired.
        """
        if self._by_key.get(key) is restore:
            del self._by_key[key]
        found = self._holdings.peek(key)
        if found is not None:
            restore.answer = found[0]
        elif entry is not None:
            self._take(restore, entry)
        restore.finished.set()
        return restore.answer

    def _take(self, restore: Restore, entry: Entry) -> None:
        counters, memory = self._counters, self._memory
        if (
            not restore.allows(entry)
            or not self._archived.allows(entry.key, entry.version, entry.tags)
            or entry.expired(self._clock())
        ):
            counters.restores_refused += 1
            return
        counters.restores += 1
        counters.restored_bytes += entry.value_bytes
        counters.restored_cost_seconds += entry.cost_seconds or 0.0
        restore.answer = entry
        bound, before = restore.may_evict_bytes, memory.used_bytes + entry.size_bytes
        if bound is None or before - memory.limit_bytes <= bound:
            self._holdings.keep_if_room(entry)
            restore.evicted_bytes = max(0, before - memory.used_bytes)

    def written(self, key: str) -> None:
        """What the archive has of `key` is outdated."""
        restore = self._by_key.pop(key, None)
        if restore is not None:
            restore.stale = True

    def tag_deleted(self, tag: str) -> None:
        """What the archive has with `tag` is outdated."""
        for restore in self._by_key.values():
            restore.deleted_tags.add(tag)

    def settled(self, target: Target, version: str) -> None:
        """The archive knows by now that below `version` nothing of that key or tag counts."""
        asked = self._by_key.values() if isinstance(target, tuple) else (self._by_key.get(target),)
        for restore in asked:
            if restore is not None:
                restore.floors[target] = version

    def cleared(self) -> None:
        """All that the archive has is outdated."""
        for restore in self._by_key.values():
            restore.stale = True
        self._by_key.clear()
