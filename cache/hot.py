"""Which entries are read most, known at any time without looking at all of them."""

import heapq
from collections.abc import Callable

from cache.entry import Entry

KEPT = 1000


class HotEntries:
    """The `kept` entries in RAM with the most hits, give or take what was evicted meanwhile.

    `note` is O(1) on average: an entry becomes a candidate when it has more hits than the
    least of the last selection; at twice `kept` candidates the best half is selected anew. What
    left RAM makes room at the next selection. An entry that was passed over enters with its next
    hit, so the list is exact but for entries not read since hotter ones left.
    """

    def __init__(self, peek: Callable[[str], Entry | None], kept: int = KEPT) -> None:
        self._peek = peek
        self._kept = kept
        self._candidates: set[str] = set()
        self._passed_hits = -1

    def note(self, key: str, hits: int) -> None:
        """`key` was hit, `hits` times by now; the latest of them may not be counted yet."""
        if hits > self._passed_hits:
            self._candidates.add(key)
            if len(self._candidates) > 2 * self._kept:
                self._select()

    def top(self, count: int) -> list[Entry]:
        """At most `count` entries, most hits first; of equals the one read last."""
        return self._select()[:count]

    def _select(self) -> list[Entry]:
        entries = [entry for key in self._candidates if (entry := self._peek(key)) is not None]
        best = heapq.nlargest(
            self._kept, entries, key=lambda entry: (entry.access_count, entry.last_accessed_ns)
        )
        self._candidates = {entry.key for entry in best}
        self._passed_hits = best[-1].access_count if len(best) == self._kept else -1
        return best
