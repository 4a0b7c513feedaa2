"""First in, first out."""

from collections.abc import Sequence

from cache.entry import Entry
from cache.policies.policy import EvictionPolicy
from cache.policies.segments import SegmentQueue


class Fifo(SegmentQueue, EvictionPolicy):
    """What was set first leaves first, whether it was used or not."""

    added = SegmentQueue.append
    removed = SegmentQueue.discard
    renewed = SegmentQueue.renew
    holds = SegmentQueue.holds

    def used(self, entries: Sequence[Entry]) -> None:
        """Changes nothing."""
