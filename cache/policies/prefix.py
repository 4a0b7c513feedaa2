"""Least expected use first, for prefix chains: tails before heads, one-time prompts before all."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby
from math import inf
from operator import attrgetter

from cache.entry import Entry
from cache.policies.policy import EvictionPolicy
from cache.policies.remembered import Remembered
from cache.policies.reuse import CLASSES, LAST, NEW, STARTS_NS, ReuseModel
from cache.policies.segments import SEGMENT_KEYS, Segment, SegmentQueue
from schemas.units import SECOND_NS

_PLACE = attrgetter("place")


class Prefix(EvictionPolicy):
    """One queue for each class of `reuse`; what leaves is the queue head that is worth least.

    A chain is cut where the class changes; each part is a segment, linked to the next deeper one,
    and what leaves is always the deepest key of the deepest one. Keys that left are remembered
    for a while, so that one that comes back counts as used again. Only look-ups and returns count:
    a put of what is held is the same use as the look-up before it.

    Keys set or looked up alone go into segments of up to a second, treated like chains.
    """

    def __init__(self) -> None:
        self._queues = [SegmentQueue(rank) for rank in range(CLASSES)]
        self._model = ReuseModel()
        self._remembered = Remembered()
        self._entries = 0
        self._least: Segment  # what is worth least, by the last search
        self._runner_up = inf  # what the next one was worth, of another class
        self._searched_ns = 0
        self._leaving: Segment | None = None  # the deepest below `_least`
        self._left: list[str] = []  # what was in that, to be remembered
        self._now_ns = 0
        self._clock_ns = 0

    def added(self, entry: Entry, now_ns: int) -> None:
        """New: of its class, or of that of the entry it replaces."""
        now_ns = self._time(now_ns)
        if entry.place is not None:
            rank = entry.place.rank
        elif (past := self._take((entry,), now_ns)[0]) is not None:
            rank = self._model.use(*past, 1)
        else:
            rank = NEW
            self._model.place(NEW, 1)
        queue = self._queues[rank]
        segment = queue.open_segment(now_ns, self._segment_keys(), SECOND_NS)
        segment.keys[entry.key] = None
        entry.place = segment
        self._count(1)

    def used(self, entries: Sequence[Entry]) -> None:
        """Each of the class of its gap, all at the time of the last one."""
        now_ns = self._time(entries[-1].last_accessed_ns)
        limit = self._segment_keys()
        opened: dict[int, Segment] = {}
        for entry in entries:
            old = entry.place
            if old is None:
                continue
            rank = self._model.use(old.rank, (now_ns - old.used_at_ns) / SECOND_NS, 1)
            segment = opened.get(rank)
            if segment is None or not 0 < len(segment.keys) < limit:
                segment = self._queues[rank].open_segment(now_ns, limit, SECOND_NS)
                opened[rank] = segment
            if segment is not old:
                key = entry.key
                keys = old.keys
                del keys[key]
                if len(keys) <= old.sparse_keys:
                    self._queues[old.rank].shrink(old)
                segment.keys[key] = None
                entry.place = segment
        self._model.note_if_due(now_ns / SECOND_NS)

    def removed(self, entry: Entry) -> None:
        """Gone, and not remembered."""
        self._queues[entry.place.rank].discard(entry)
        self._entries -= 1

    def pop(self) -> str:
        """The deepest key of the chain worth least; one search serves all of its keys."""
        segment = self._leaving
        if segment is None or not segment.keys:
            if segment is None:
                self._least = self._worth_least()
            elif not self._least.keys:
                self._least = self._next_least() or self._worth_least()
            self._remember_left()
            segment = self._leaving = _deepest(self._least)
        key, _ = segment.keys.popitem()
        if not segment.keys:
            self._queues[segment.rank].shrink(segment)
        self._left.append(key)
        self._entries -= 1
        return key

    def holds(self, entry: Entry) -> bool:
        """In one of its queues."""
        return any(queue.holds(entry) for queue in self._queues)

    def chain_added(self, entries: Sequence[Entry], parent: Entry | None, now_ns: int) -> None:
        """In segments below their parent's; a last one never seen is of the class `LAST`.

        One that comes alone is not known to be the last.
        """
        now_ns = self._time(now_ns)
        new = [entry for entry in entries if entry.place is None]
        past = self._take(new, now_ns)
        if len(new) == len(entries) and not any(past):
            ranks = [NEW] * len(entries)
            if len(entries) > 1:
                ranks[-1] = LAST
            strangers = len(entries)
        else:
            ranks, strangers = self._ranks(entries, past)
        if strangers:
            last = len(entries) > 1 and ranks[-1] == LAST and entries[-1].place is None
            self._model.place(LAST, last)
            self._model.place(NEW, strangers - last)
        segment = None if parent is None else self._chain_of(parent, now_ns)
        start = 0
        for rank, part in groupby(ranks):
            if segment is None or segment.rank != rank:
                segment = self._below(segment, rank, now_ns)
            end = start + len(list(part))
            self._queues[rank].extend(segment, entries[start:end])
            start = end
        self._stop_leaving()
        self._count(len(entries))

    def chain_used(self, entries: Sequence[Entry], now_ns: int) -> None:
        """Each part of the chain that was used together before is counted and moved as one."""
        now_ns = self._time(now_ns)
        self._stop_leaving()
        segment: Segment | None = None
        for old, part in groupby(entries, _PLACE):
            segment = self._use_part(list(part), old, segment, now_ns)
        self._model.note_if_due(now_ns / SECOND_NS)

    def chain_moved(self, entries: Sequence[Entry], parent: Entry | None, now_ns: int) -> None:
        """In segments below their parent's, each of the class it has."""
        for entry in entries:
            self.removed(entry)
        self.chain_added(entries, parent, now_ns)

    def _time(self, now_ns: int) -> int:
        """The time by the clock's steps ahead: it stands still where the clock steps back."""
        step_ns = now_ns - self._clock_ns
        self._clock_ns = now_ns
        if step_ns > 0:
            self._now_ns += step_ns
        return self._now_ns

    def _count(self, entries: int) -> None:
        self._entries += entries
        self._remembered.reserve(self._entries)
        self._model.note_if_due(self._now_ns / SECOND_NS)

    def _segment_keys(self) -> int:
        """How long a segment of single keys gets: it leaves newest first, so it must be small."""
        return min(SEGMENT_KEYS, 1 + self._entries // SEGMENT_KEYS)

    def _take(self, entries: Sequence[Entry], now_ns: int) -> list[tuple[int, float] | None]:
        """What is remembered of `entries`, and no longer."""
        self._remember_left()
        return self._remembered.take(entries, now_ns)

    def _stop_leaving(self) -> None:
        """Chains changed: which one is worth least, and how deep it goes, is to be seen anew."""
        self._remember_left()
        self._leaving = None

    def _remember_left(self) -> None:
        if self._left and self._leaving is not None:
            self._remembered.put(self._left, self._leaving.rank, self._leaving.used_at_ns)
            self._left = []

    def _ranks(
        self, entries: Sequence[Entry], past: Sequence[tuple[int, float] | None]
    ) -> tuple[list[int], int]:
        """The class of each entry of a chain, and how many of them were never seen.

        `past` is what was remembered of those without a place.
        """
        ranks: list[int] = []
        strangers = 0
        rank_of_new = NEW if len(entries) == 1 else LAST
        deeper: tuple[int, float] | None = None
        rank, alike = 0, 0
        remembered = iter(reversed(past))
        for entry in reversed(entries):
            if entry.place is not None:
                ranks.append(entry.place.rank)
            else:
                # What was forgotten of a key is known of any deeper one: they were used together.
                own = next(remembered) or deeper
                if own is None:
                    ranks.append(rank_of_new)
                    strangers += 1
                else:
                    if own != deeper:
                        if deeper is not None:
                            self._model.use(*deeper, alike)
                        deeper, alike = own, 0
                        rank = self._model.use(*own, 0)
                    ranks.append(rank)
                    alike += 1
            rank_of_new = NEW
        if deeper is not None:
            self._model.use(*deeper, alike)
        ranks.reverse()
        return ranks, strangers

    def _below(self, segment: Segment | None, rank: int, now_ns: int) -> Segment:
        """A new segment for what is deeper than `segment`."""
        new = self._queues[rank].new_segment(now_ns, is_chain=True)
        if segment is not None:
            segment.deeper = new
        return new

    def _chain_of(self, parent: Entry, now_ns: int) -> Segment:
        """The segment of `parent`, made one of a chain that goes on."""
        place: Segment = parent.place
        if place.is_chain and place.rank != LAST:
            return place
        rank = place.rank
        self._queues[rank].discard(parent)
        if rank == LAST:
            self._model.place(LAST, -1)
            self._model.place(NEW, 1)
            rank = NEW
        segment = self._below(place, rank, now_ns)
        self._queues[rank].extend(segment, (parent,))
        return segment

    def _use_part(
        self, entries: list[Entry], old: Segment, above: Segment | None, now_ns: int
    ) -> Segment:
        """Move entries that are together in `old`; returns where they are now."""
        gap_seconds = (now_ns - old.used_at_ns) / SECOND_NS
        rank = self._model.use(old.rank, gap_seconds, len(entries))
        if above is None or above.rank != rank:
            above = self._below(above, rank, now_ns)
            if self._is_all(entries, old):
                above.keys, above.sparse_keys = self._queues[old.rank].take_keys(old)
                for entry in entries:
                    entry.place = above
                return above
        self._queues[old.rank].discard_from(old, entries)
        self._queues[rank].extend(above, entries)
        return above

    def _is_all(self, entries: Sequence[Entry], segment: Segment) -> bool:
        """Whether `entries` are all of a segment, as most parts are: it can be moved as one."""
        return segment.is_chain and len(entries) == len(segment.keys)

    def _next_least(self) -> Segment | None:
        """The next of the class that `_worth_least` chose, where it still is worth least."""
        rank = self._least.rank
        segments = self._queues[rank].segments
        if self._searched_ns != self._now_ns or not segments:
            return None
        head = next(iter(segments))
        worth = self._model.worth(rank, (self._now_ns - head.used_at_ns) / SECOND_NS)
        return head if worth < self._runner_up else None

    def _worth_least(self) -> Segment:
        """The segment worth least; of equals the oldest."""
        model, now_ns = self._model, self._now_ns
        model.learn_if_due(now_ns / SECOND_NS)
        segment: Segment | None = None
        least = self._runner_up = inf
        for rank, queue in enumerate(self._queues):
            if not queue.segments:
                continue
            head = next(iter(queue.segments))
            # As `model.worth`, spelled out: this is asked for every few keys that leave.
            worths = model.worths[rank] or model.estimate(rank)
            worth = worths[bisect_right(STARTS_NS, now_ns - head.used_at_ns) - 1]
            if segment is None or (worth, head.used_at_ns) < (least, segment.used_at_ns):
                least, segment, self._runner_up = worth, head, least
            else:
                self._runner_up = min(worth, self._runner_up)
        self._searched_ns = now_ns
        assert segment is not None, "the cache pops only while there is an entry"  # noqa: S101
        return segment


def _deepest(segment: Segment) -> Segment:
    """The deepest part of the chain that begins with `segment`."""
    deepest = segment
    while segment.deeper is not None:
        segment = segment.deeper
        if segment.keys:
            deepest = segment
    return deepest
