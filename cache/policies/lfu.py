"""Least frequently used first; of those used as often, the least recently used."""

from collections.abc import Sequence

from cache.entry import Entry
from cache.policies.policy import EvictionPolicy
from cache.policies.segments import SegmentQueue


class _Level:
    """The entries used equally often, between the next lower and the next higher level."""

    __slots__ = ("higher", "lower", "queue")

    def __init__(self, uses: int, lower: int, higher: int | None) -> None:
        self.queue = SegmentQueue(uses)
        self.lower = lower
        self.higher = higher


_FLOOR = -1  # below every level


class Lfu(EvictionPolicy):
    """One queue for each number of uses, linked in their order; counts are those of the entry."""

    def __init__(self) -> None:
        self._levels = {_FLOOR: _Level(_FLOOR, _FLOOR, None)}

    def added(self, entry: Entry, now_ns: int) -> None:
        """At its count: 0, or what it was used before it came here."""
        uses = entry.access_count
        lower = _FLOOR
        # New entries have count 0 and stop at once; only a policy that takes over walks on.
        while (higher := self._levels[lower].higher) is not None and higher < uses:
            lower = higher
        self._level(uses, lower).queue.append(entry, now_ns)

    def used(self, entries: Sequence[Entry]) -> None:
        """One level up."""
        for entry in entries:
            if entry.place is None:
                continue
            uses = entry.place.rank
            level = self._level(uses + 1, uses)
            self.removed(entry)
            level.queue.append(entry, entry.last_accessed_ns)

    def removed(self, entry: Entry) -> None:
        """Out of its level."""
        uses = entry.place.rank
        self._levels[uses].queue.discard(entry)
        self._drop_if_empty(uses)

    def pop(self) -> str:
        """The oldest of the lowest level."""
        uses = self._levels[_FLOOR].higher
        assert uses is not None, "the cache pops only while there is an entry"  # noqa: S101
        key = self._levels[uses].queue.pop()
        self._drop_if_empty(uses)
        return key

    def holds(self, entry: Entry) -> bool:
        """In one of its levels."""
        level = self._levels.get(getattr(entry.place, "rank", _FLOOR))
        return level is not None and level.queue.holds(entry)

    def _level(self, uses: int, lower: int) -> _Level:
        """The level, made above `lower` where it is missing."""
        level = self._levels.get(uses)
        if level is None:
            below = self._levels[lower]
            level = self._levels[uses] = _Level(uses, lower, below.higher)
            if below.higher is not None:
                self._levels[below.higher].lower = uses
            below.higher = uses
        return level

    def _drop_if_empty(self, uses: int) -> None:
        level = self._levels[uses]
        if level.queue:
            return
        del self._levels[uses]
        self._levels[level.lower].higher = level.higher
        if level.higher is not None:
            self._levels[level.higher].lower = level.lower
