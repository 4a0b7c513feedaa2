"""Which archived value is worth least now."""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable

from archive.index_entry import IndexEntry
from schemas.units import SECOND_NS
from schemas.worth import worth

STEPS_PER_DOUBLING = 4
SPARE = 1000


class Ranking:
    """Values in classes of about equal score, each class by last use, oldest first.

    The order of two values changes as they age, but not within a class (up to the 19 % by which
    its scores differ): so only the oldest of each class is compared. Adding is O(log n),
    `least` O(classes + log n) amortised. Who left the index is forgotten when met here.
    """

    def __init__(self, is_current: Callable[[IndexEntry], bool]) -> None:
        self._is_current = is_current
        self._classes: defaultdict[int, list[tuple[int, int, IndexEntry]]] = defaultdict(list)
        self._added = 0
        self._held = 0

    def add(self, entry: IndexEntry) -> None:
        """`entry` is in the index from now on."""
        self._added += 1
        self._held += 1
        step = math.floor(STEPS_PER_DOUBLING * math.log2(entry.score))
        heapq.heappush(self._classes[step], (entry.used_ns, self._added, entry))

    def tidy(self, current: int, entries: Iterable[IndexEntry]) -> None:
        """Rebuild from the `current` entries when most of what is held left the index."""
        if self._held > 2 * current + SPARE:
            self._classes.clear()
            self._held = 0
            for entry in entries:
                self.add(entry)

    def least(self, now_ns: int) -> IndexEntry | None:
        """The current value of the least worth at `now_ns`; None where there is none."""
        least: IndexEntry | None = None
        least_worth = math.inf
        for step, ranked in list(self._classes.items()):
            while ranked and not self._is_current(ranked[0][2]):
                heapq.heappop(ranked)
                self._held -= 1
            if not ranked:
                del self._classes[step]
                continue
            oldest = ranked[0][2]
            its_worth = worth(oldest.score, (now_ns - oldest.used_ns) / SECOND_NS)
            if its_worth < least_worth:
                least, least_worth = oldest, its_worth
        return least
