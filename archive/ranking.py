"""Which archived value is worth least now."""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from archive.packed_entry import score_of
from schemas.units import SECOND_NS
from schemas.worth import worth

STEPS_PER_DOUBLING = 4
SPARE = 1000


class Ranked(NamedTuple):
    """A value by its last use and its key, and its entry as the index holds it."""

    used_ns: int
    key: bytes
    record: bytes


class Ranking:
    """Values in classes of about equal score, each class by last use, oldest first.

    The order of two values changes as they age, but not within a class (up to the 19 % by which
    its scores differ): so only the oldest of each class is compared. Adding is O(log n),
    `least` O(classes + log n) amortised. Who left the index is forgotten when met here.
    """

    def __init__(self, is_current: Callable[[Ranked], bool]) -> None:
        self._is_current = is_current
        self._classes: defaultdict[int, list[Ranked]] = defaultdict(list)
        self._held = 0

    def add(self, value: Ranked) -> None:
        """`value` is in the index from now on."""
        self._held += 1
        step = math.floor(STEPS_PER_DOUBLING * math.log2(score_of(value.record)))
        heapq.heappush(self._classes[step], value)

    def tidy(self, current: int, values: Iterable[Ranked]) -> None:
        """Rebuild from the `current` values when most of what is held left the index."""
        if self._held > 2 * current + SPARE:
            self._classes.clear()
            self._held = 0
            for value in values:
                self.add(value)

    def least(self, now_ns: int) -> Ranked | None:
        """The current value of the least worth at `now_ns`; None where there is none."""
        least: Ranked | None = None
        least_worth = math.inf
        for step, ranked in list(self._classes.items()):
            while ranked and not self._is_current(ranked[0]):
                heapq.heappop(ranked)
                self._held -= 1
            if not ranked:
                del self._classes[step]
                continue
            oldest = ranked[0]
            its_worth = worth(score_of(oldest.record), (now_ns - oldest.used_ns) / SECOND_NS)
            if its_worth < least_worth:
                least, least_worth = oldest, its_worth
        return least
