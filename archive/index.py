"""What one namespace of the archive holds, in RAM; rebuilt from the objects' headers at start."""

import dataclasses
import heapq
from collections.abc import Iterable

from archive.index_entry import LEAST_SCORE, IndexEntry, Order
from archive.ranking import Ranking


class NamespaceIndex:
    """The newest version of each key, and the newest generation seen.

    Lookups and changes are O(1), with a budget O(log n); `due`, `hashes` and `listing` walk all
    entries. About 600 bytes and the key for each entry.

    Args:
        budget_bytes: what the objects of its values may take together; 0 = no limit.
    """

    def __init__(self, budget_bytes: int = 0) -> None:
        self.budget_bytes = budget_bytes
        self.generation = 0
        self.tombstones = 0
        self.size_bytes = 0
        self.object_bytes = 0
        self._tombstone_bytes = 0
        self._entries: dict[str, IndexEntry] = {}
        self._superseding: set[str] = set()
        self._ranking = Ranking(lambda entry: self._entries.get(entry.key) is entry)
        self._tags: dict[str, IndexEntry] = {}

    @property
    def entries(self) -> int:
        """How many values there are, tombstones not counted."""
        return len(self._entries) + len(self._tags) - self.tombstones

    def saw_generation(self, generation: int) -> None:
        """A newer generation makes everything older unreachable."""
        self.generation = max(self.generation, generation)

    def newest(self, key: str) -> IndexEntry | None:
        """The highest version known of `key`, be it expired, cleared or a tombstone."""
        return self._entries.get(key)

    def find(self, key: str, now_ns: int) -> IndexEntry | None:
        """The value of `key` that may be returned now."""
        entry = self._entries.get(key)
        return entry if entry is not None and self._is_live(entry, now_ns) else None

    def tombstone_of(self, tag: str) -> IndexEntry | None:
        """The newest deletion of `tag`."""
        return self._tags.get(tag)

    def is_deleted(self, tags: Iterable[str], order: Order) -> bool:
        """Whether a value of this order with these tags was deleted by one of them."""
        return any(tag in self._tags and order < self._tags[tag].order for tag in tags)

    def put(self, entry: IndexEntry) -> IndexEntry | None:
        """Add a version; returns the loser of the comparison, whose object is not needed."""
        self.saw_generation(entry.generation)
        entries, name = self._place(entry)
        known = entries.get(name)
        if known is not None and known.covers(entry.order, entry.expires_ns):
            return entry
        if known is not None:
            self._count(known, -1)
            if known.order != entry.order and entry.tag is None:
                self._superseding.add(entry.key)
        self._add(entry)
        return known

    def remove(self, entry: IndexEntry) -> None:
        """Forget `entry`, unless a newer version took its place."""
        if self.holds(entry):
            entries, name = self._place(entry)
            del entries[name]
            if entry.tag is None:
                self._superseding.discard(entry.key)
            self._count(entry, -1)

    def holds(self, entry: IndexEntry) -> bool:
        """Whether `entry` is still the newest version of its key or tag."""
        entries, name = self._place(entry)
        return entries.get(name) is entry

    def replace_by_tombstone(self, entry: IndexEntry) -> None:
        """Keep only the memory that versions below are gone: the object is damaged."""
        generation, version, _ = entry.order
        if self._entries.get(entry.key) is entry:
            self.remove(entry)
            self.put(
                dataclasses.replace(
                    entry, order=(generation, version, False), size_bytes=0, object_bytes=0
                )
            )

    def use(self, entry: IndexEntry, score: float, used_ns: int) -> None:
        """The value is worth something else from now on; the object keeps the old figures."""
        if self._entries.get(entry.key) is entry:
            self._count(entry, -1)
            self._add(dataclasses.replace(entry, score=score, used_ns=used_ns))

    def hand_out(self, entry: IndexEntry) -> None:
        """The cache has the value in RAM: here it goes first, until it is evicted again."""
        self.use(entry, LEAST_SCORE, entry.used_ns)

    def excess(self, now_ns: int) -> IndexEntry | None:
        """The value to drop next; None while all values are within the budget."""
        if not self.budget_bytes or self.value_object_bytes <= self.budget_bytes:
            return None
        return self._ranking.least(now_ns)

    def took_a_place(self, key: str) -> bool:
        """Whether an older version of `key` was here before the one that is here now."""
        return key in self._superseding

    @property
    def value_object_bytes(self) -> int:
        """Bytes of the objects that hold values: what the budget bounds."""
        return self.object_bytes - self._tombstone_bytes

    def due(self, now_ns: int, tombstones_before_ns: int) -> list[IndexEntry]:
        """Expired, cleared and deleted values, and tombstones stored before that instant.

        Values stand first: the tombstone of a tag is not needed once they are gone.
        """
        return [
            entry
            for entry in (*self._entries.values(), *self._tags.values())
            if (
                entry.stored_ns < tombstones_before_ns
                if entry.tombstone
                else not self._is_live(entry, now_ns)
            )
        ]

    def hashes(self, after: bytes, limit: int, now_ns: int) -> list[bytes]:
        """Hashes of the keys that can be returned, sorted, above `after`, at most `limit`."""
        above = (
            entry.hash
            for entry in self._entries.values()
            if entry.hash > after and self._is_live(entry, now_ns)
        )
        return sorted(above)[:limit]

    def listing(self, prefix: str, after: str, limit: int, now_ns: int) -> list[IndexEntry]:
        """Entries that can be returned, by key, above `after`, at most `limit`."""
        wanted = (
            entry
            for entry in self._entries.values()
            if entry.key > after and entry.key.startswith(prefix) and self._is_live(entry, now_ns)
        )
        return heapq.nsmallest(limit, wanted, key=lambda entry: entry.key)

    def _is_live(self, entry: IndexEntry, now_ns: int) -> bool:
        return (
            not entry.tombstone
            and entry.generation >= self.generation
            and not entry.is_expired(now_ns)
            and not (entry.tags and self.is_deleted(entry.tags, entry.order))
        )

    def _add(self, entry: IndexEntry) -> None:
        entries, name = self._place(entry)
        entries[name] = entry
        self._count(entry, 1)
        if self.budget_bytes and not entry.tombstone:
            self._ranking.add(entry)
            values = (known for known in self._entries.values() if not known.tombstone)
            self._ranking.tidy(self.entries, values)

    def _place(self, entry: IndexEntry) -> tuple[dict[str, IndexEntry], str]:
        return (self._entries, entry.key) if entry.tag is None else (self._tags, entry.tag)

    def _count(self, entry: IndexEntry, sign: int) -> None:
        self._tombstone_bytes += sign * entry.object_bytes * entry.tombstone
        self.tombstones += sign * entry.tombstone
        self.size_bytes += sign * entry.size_bytes
        self.object_bytes += sign * entry.object_bytes
