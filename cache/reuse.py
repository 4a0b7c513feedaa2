"""Learns from what comes back how likely an evicted entry is asked for again."""

import dataclasses
import heapq
import math

from cache.entry import Entry
from schemas.units import SECOND_NS
from schemas.worth import OFFSET_SECONDS

MOST_USES = 6
PRIOR = (0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
"""Relative index of each group at the start; the first: last of its chain, never read again."""
PRIOR_WEIGHT = 100.0
FORGET_ABOVE = 100_000.0
COST_RATIO_LIMIT = 64.0
LOOK_AGAIN = 1.5
SEEN_AT_ONCE = 256


def uses(entry: Entry) -> int:
    """Writes and reads of the entry, those before it was lost included."""
    return 1 + entry.access_count + entry.earlier_uses


def group(entry: Entry) -> int:
    """0: the last of its chain and never read again; else how often it was used, up to 6."""
    used = uses(entry)
    is_last = entry.parent is not None and not entry.extended
    return 0 if used == 1 and is_last else min(used, MOST_USES)


@dataclasses.dataclass(slots=True)
class _Watched:
    group: int
    uses: int
    used_ns: int
    seen_until_ns: int
    number: int
    is_back: bool = False


class ReuseLearner:
    """The re-use index of each group of entries, from the evictions of one namespace.

    Model: while an evicted entry is idle, its chance of being asked for falls as 1 / (idle + 5 s),
    by a factor that its group shares, `index`: of those idle for t, the share 2 ^ -index is still
    not asked for at 2 t + 5 s. The estimates are the maximum-likelihood ones, with a prior:

        mean  = (all returns + 100) / (all watched + 100)
        index = (returns + 100 · prior · mean) / (watched + 100)

    `watched` is the sum of ln((idle at the end + 5) / (idle at the start + 5)) over the time each
    entry was watched, so entries that have not come back yet count for as long as they were seen.
    Worked: 1000 entries of group 1 watched from 95 s to 195 s of idle time, 100 of them came back
    near the end, nothing else was evicted: watched 693, mean 200 / 793 = 0.252, index
    (100 + 12.6) / 793 = 0.142, 0.563 of the mean.

    At most `watched_max` evictions are watched (about 500 bytes each), the newest. All sums are
    halved when `watched` of all groups exceeds 100,000: older traffic fades. Every call is
    O(log n) amortised; after a pause, what is due is seen 256 at a time. Not thread-safe, as its
    namespace.
    """

    def __init__(self, watched_max: int) -> None:
        self._watched_max = watched_max
        self._watched: dict[int, _Watched] = {}
        self._due: list[tuple[int, int, int]] = []
        self._evictions = 0
        self._returns = [0.0] * len(PRIOR)
        self._exposure = [0.0] * len(PRIOR)
        self._cost_seconds = 0.0
        self._cost_bytes = 0.0
        self.returns = 0

    def __len__(self) -> int:
        """Evictions watched now."""
        return len(self._watched)

    def relative_index(self, of_group: int) -> float:
        """The re-use index of a group by the mean of the namespace; before any eviction `PRIOR`."""
        mean = (sum(self._returns) + PRIOR_WEIGHT) / (sum(self._exposure) + PRIOR_WEIGHT)
        returns = self._returns[of_group] + PRIOR_WEIGHT * PRIOR[of_group] * mean
        return returns / (self._exposure[of_group] + PRIOR_WEIGHT) / mean

    def cost_ratio(self, entry: Entry) -> float:
        """Cost to recompute a byte of it, by that of the evicted bytes whose cost is known.

        Within 1/64 and 64; 1 where a cost is not known.
        """
        if entry.cost_seconds is None or self._cost_seconds <= 0:
            return 1.0
        mean = self._cost_seconds / self._cost_bytes
        ratio = entry.cost_seconds / max(entry.size_bytes, 1) / mean
        return min(max(ratio, 1 / COST_RATIO_LIMIT), COST_RATIO_LIMIT)

    def score(self, entry: Entry) -> float:
        """The score for `schemas.worth`: `relative_index` of its group · `cost_ratio`."""
        return self.relative_index(group(entry)) * self.cost_ratio(entry)

    def evicted(self, entry: Entry, now_ns: int) -> None:
        """Watch whether `entry`, which leaves RAM now, comes back."""
        if entry.cost_seconds is not None:
            self._cost_seconds += entry.cost_seconds
            self._cost_bytes += max(entry.size_bytes, 1)
        digest = hash(entry.key)
        self._evictions += 1
        self._end(digest, now_ns)
        while len(self._watched) >= self._watched_max:
            self._end(next(iter(self._watched)), now_ns)
        watched = _Watched(
            group(entry), uses(entry), entry.last_accessed_ns, now_ns, self._evictions
        )
        self._watched[digest] = watched
        self._look_again(digest, watched)
        self._advance(now_ns)

    def asked(self, key: str, now_ns: int) -> None:
        """A lookup of `key` found nothing in RAM: a return, if it was evicted."""
        watched = self._watched.get(hash(key))
        if watched is None or watched.is_back:
            return
        self._see_until(watched, now_ns)
        self._returns[watched.group] += 1
        self.returns += 1
        watched.is_back = True

    def kept(self, key: str, now_ns: int) -> int:
        """`key` is in RAM again: ends its watch; how often it was used until it was evicted."""
        watched = self._end(hash(key), now_ns)
        return 0 if watched is None else watched.uses

    def _end(self, digest: int, now_ns: int) -> _Watched | None:
        watched = self._watched.pop(digest, None)
        if watched is not None:
            self._see_until(watched, now_ns)
        return watched

    def _advance(self, now_ns: int) -> None:
        """Count the time of those that are still away, seldomer the longer they are."""
        for _ in range(SEEN_AT_ONCE):
            if not self._due or self._due[0][0] > now_ns:
                break
            _, number, digest = heapq.heappop(self._due)
            watched = self._away(number, digest)
            if watched is not None:
                self._see_until(watched, now_ns)
                self._look_again(digest, watched)
        if len(self._due) > 2 * self._watched_max:
            # Watches that ended stay in the queue until they are due, which can be hours.
            self._due = [due for due in self._due if self._away(*due[1:]) is not None]
            heapq.heapify(self._due)
        if sum(self._exposure) > FORGET_ABOVE:
            self._returns = [count / 2 for count in self._returns]
            self._exposure = [seen / 2 for seen in self._exposure]
            self._cost_seconds, self._cost_bytes = self._cost_seconds / 2, self._cost_bytes / 2

    def _away(self, number: int, digest: int) -> _Watched | None:
        """The watch of eviction `number`, if it goes on."""
        watched = self._watched.get(digest)
        if watched is None or watched.number != number or watched.is_back:
            return None
        return watched

    def _look_again(self, digest: int, watched: _Watched) -> None:
        idle_ns = max(0, watched.seen_until_ns - watched.used_ns)
        later_ns = watched.seen_until_ns + int(
            (LOOK_AGAIN - 1) * (idle_ns + OFFSET_SECONDS * SECOND_NS)
        )
        heapq.heappush(self._due, (later_ns, watched.number, digest))

    def _see_until(self, watched: _Watched, now_ns: int) -> None:
        if watched.is_back or now_ns <= watched.seen_until_ns:
            return
        until, since = (
            max(0, instant_ns - watched.used_ns) / SECOND_NS + OFFSET_SECONDS
            for instant_ns in (now_ns, watched.seen_until_ns)
        )
        self._exposure[watched.group] += math.log(until / since)
        watched.seen_until_ns = now_ns
