"""What of each segment is still needed, and so which ones to remove or write anew."""

import dataclasses
import itertools
from collections import defaultdict

from archive import segment
from archive.index_entry import IndexEntry
from archive.money import Meter

MERGED = 8
"""So many segments of about the same size are worth one of their length."""


@dataclasses.dataclass(slots=True)
class SegmentUse:
    """`object_bytes` 0: it is still being written. Entries that are needed are `live`.

    `shadowed_since_ns`: the earliest instant at which something newer was stored than one of the
    values in it; what is newer must be remembered until the segment is gone. None: no such value.
    """

    object_bytes: int = 0
    live_bytes: int = 0
    live_entries: int = 0
    number: int = 0
    shadowed_since_ns: int | None = None


class Ledger:
    """The use of every segment, kept by the indexes of all namespaces; `meter` hears of it too."""

    def __init__(self, meter: Meter | None = None) -> None:
        self._meter = meter
        self.segments: dict[str, SegmentUse] = {}
        self._names: dict[int, str] = {}
        self._numbers = itertools.count()

    def use(self, name: str) -> SegmentUse:
        """The segment's use, which may be changed; its `number` stands for its name."""
        found = self.segments.get(name)
        if found is None:
            found = self.segments[name] = SegmentUse(number=next(self._numbers))
            self._names[found.number] = name
        return found

    def name(self, number: int) -> str:
        """The name of the segment of this number."""
        return self._names[number]

    def forget(self, name: str) -> None:
        """The segment, of which nothing was needed, is gone."""
        del self._names[self.segments.pop(name).number]

    def count(self, entry: IndexEntry, sign: int) -> None:
        """`entry` is needed from now on (1), or not any more (-1)."""
        use = self.use(entry.segment)
        use.live_bytes += sign * entry.object_bytes
        use.live_entries += sign
        if self._meter is not None:
            self._meter.count(entry, sign)

    def shadow(self, entry: IndexEntry, since_ns: int) -> None:
        """Something stored at that instant is newer than the value `entry`."""
        use = self.use(entry.segment)
        known_ns = use.shadowed_since_ns
        use.shadowed_since_ns = since_ns if known_ns is None else min(known_ns, since_ns)

    def dead(self) -> list[str]:
        """Segments of which nothing is needed."""
        return [
            name for name, use in self.segments.items() if use.object_bytes and not use.live_entries
        ]

    def wasteful(self, dead_ratio: float, shadowed_before_ns: int) -> list[str]:
        """Segments to write anew, those that give the most bytes back first.

        More than `dead_ratio` of them is not needed, or what is newer than a value in them would
        have to be remembered for longer than since `shadowed_before_ns`.
        """
        chosen = [
            (use.live_bytes - use.object_bytes, name)
            for name, use in self.segments.items()
            if use.object_bytes
            and use.live_entries
            and (
                use.object_bytes - use.live_bytes > dead_ratio * use.object_bytes
                or (use.shadowed_since_ns or shadowed_before_ns) < shadowed_before_ns
            )
        ]
        return [name for _, name in sorted(chosen)]

    def small(self, segment_bytes: int) -> list[str]:
        """Segments to write anew as fewer: of each class, `MERGED` or more of about one size.

        As each is at most four times as long as another one, and none above an eighth of
        `segment_bytes`, a value is moved a few times at most, however seldom values come.
        """
        alike: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
        for name, use in self.segments.items():
            if use.live_entries and 0 < use.object_bytes <= segment_bytes // MERGED:
                size = use.object_bytes.bit_length() // 2
                alike[segment.class_of(name), size].append(name)
        return [name for names in alike.values() if len(names) >= MERGED for name in names]

    def shadowed_since_ns(self) -> int | None:
        """Tombstones stored from then on are needed; None: no segment needs any."""
        instants = (use.shadowed_since_ns for use in self.segments.values())
        return min((ns for ns in instants if ns is not None), default=None)
