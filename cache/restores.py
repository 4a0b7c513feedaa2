"""Questions to the archive that are under way, one for each key."""

import asyncio

from cache.entry import Entry
from cache.outbox import Target


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
    """Those that are under way; what is written or deleted meanwhile makes them stale."""

    def __init__(self) -> None:
        self._by_key: dict[str, Restore] = {}

    def __len__(self) -> int:
        """How many keys the archive is being asked for now."""
        return len(self._by_key)

    def under_way(self, key: str) -> Restore | None:
        """The unanswered question for `key` that still is worth waiting for."""
        return self._by_key.get(key)

    def begin(self, key: str) -> Restore:
        """Note that the archive is asked for `key`; `end` must follow, whatever comes."""
        restore = self._by_key[key] = Restore()
        return restore

    def end(self, key: str, restore: Restore) -> None:
        """It is answered, or given up."""
        if self._by_key.get(key) is restore:
            del self._by_key[key]

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
