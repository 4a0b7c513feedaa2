"""Least recently used first, of a chain the tail before its head."""

from collections.abc import Sequence

from cache.entry import Entry
from cache.policies.policy import EvictionPolicy
from cache.policies.segments import SegmentQueue


class Lru(SegmentQueue, EvictionPolicy):
    """What is looked up or set is the newest; a chain has one place in the order."""

    added = SegmentQueue.append
    used = SegmentQueue.move
    removed = SegmentQueue.discard
    renewed = SegmentQueue.renew
    holds = SegmentQueue.holds

    def chain_added(self, entries: Sequence[Entry], parent: Entry | None, now_ns: int) -> None:
        """They join their parent's place, behind it."""
        if parent is None:
            self.new_chain(entries, now_ns)
            return
        if not parent.place.is_chain:
            self.chain_used((parent,), now_ns)
        self.extend(parent.place, entries)

    def chain_used(self, entries: Sequence[Entry], now_ns: int) -> None:
        """They become the newest, together."""
        for entry in entries:
            self.discard(entry)
        self.new_chain(entries, now_ns)

    def chain_moved(self, entries: Sequence[Entry], parent: Entry | None, now_ns: int) -> None:
        """As when they were looked up."""
        for entry in entries:
            self.discard(entry)
        self.chain_added(entries, parent, now_ns)
