"""Keys in the order of their last use, in segments: the queue under most policies."""

from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from cache.entry import Entry

SEGMENT_KEYS = 85  # a dict with more doubles its size


class Segment(msgspec.Struct, eq=False, gc=False):
    """Keys that came one after the other, oldest first, or a part of one chain, root first.

    The keys are a dict, because that finds one in O(1), and one of strings and None is invisible
    to the garbage collector. `rank` is the policy's note of the queue that holds the segment.
    `deeper` is where the same chain went on, if that was in another segment.
    """

    used_at_ns: int
    rank: int = 0
    is_chain: bool = False
    keys: dict[str, None] = msgspec.field(default_factory=dict)
    sparse_keys: int = 0
    deeper: "Segment | None" = None


class SegmentQueue:
    """Segments, the least recently used first. Every method is O(1) an entry.

    It takes about 30 bytes a key, a quarter of an OrderedDict of keys.
    """

    def __init__(self, rank: int = 0) -> None:
        self._rank = rank
        self.segments: OrderedDict[Segment, None] = OrderedDict()
        self._open: Segment | None = None

    def __bool__(self) -> bool:
        """Whether it holds a key."""
        return bool(self.segments)

    def append(self, entry: Entry, now_ns: int) -> None:
        """`entry`, held nowhere, becomes the newest."""
        segment = self._open
        if segment is None or len(segment.keys) >= SEGMENT_KEYS:
            segment = self._open = self.new_segment(now_ns)
        segment.keys[entry.key] = None
        entry.place = segment

    def open_segment(self, now_ns: int, keys: int, span_ns: int) -> Segment:
        """Where the newest keys go, one by one: new once it has `keys` keys or is that old.

        It must get a key.
        """
        segment = self._open
        if segment is None or len(segment.keys) >= keys or now_ns - segment.used_at_ns >= span_ns:
            segment = self._open = self.new_segment(now_ns)
        return segment

    def move(self, entries: Sequence[Entry]) -> None:
        """`entries`, held here unless they have no place, become the newest, in this order."""
        opened = self._open
        room = 0 if opened is None else SEGMENT_KEYS - len(opened.keys)
        for entry in entries:
            segment = entry.place
            if segment is None:
                continue
            key = entry.key
            keys = segment.keys
            del keys[key]
            if segment is opened:
                keys[key] = None
                continue
            if len(keys) <= segment.sparse_keys:
                self.shrink(segment)
            if opened is None or room <= 0:
                opened = self._open = self.new_segment(entry.last_accessed_ns)
                room = SEGMENT_KEYS
            room -= 1
            opened.keys[key] = None
            entry.place = opened

    def holds(self, entry: Entry) -> bool:
        """Whether `entry` is here."""
        return entry.place in self.segments

    def is_open(self, segment: Segment) -> bool:
        """Whether `segment` is the one that `append` adds to."""
        return segment is self._open

    def new_segment(self, now_ns: int, *, is_chain: bool = False) -> Segment:
        """An empty segment as the newest; it must get a key."""
        segment = Segment(now_ns, self._rank, is_chain)
        segment.sparse_keys = SEGMENT_KEYS // 4
        self.segments[segment] = None
        return segment

    def new_chain(self, entries: Sequence[Entry], now_ns: int) -> Segment:
        """`entries`, root first and held nowhere, become the newest."""
        segment = self.new_segment(now_ns, is_chain=True)
        self.extend(segment, entries)
        return segment

    def extend(self, segment: Segment, entries: Sequence[Entry]) -> None:
        """Put `entries`, held nowhere, below the chain that is in `segment`."""
        keys = segment.keys
        for entry in entries:
            keys[entry.key] = None
            entry.place = segment
        segment.sparse_keys = len(keys) // 4

    def renew(self, entry: Entry, now_ns: int) -> None:
        """`entry`, held here, becomes the newest."""
        segment = entry.place
        keys = segment.keys
        key = entry.key
        del keys[key]
        if segment is self._open:
            keys[key] = None
            return
        if len(keys) <= segment.sparse_keys:
            self.shrink(segment)
        self.append(entry, now_ns)

    def discard(self, entry: Entry) -> None:
        """Take `entry` out."""
        segment = entry.place
        del segment.keys[entry.key]
        if len(segment.keys) <= segment.sparse_keys:
            self.shrink(segment)

    def discard_from(self, segment: Segment, entries: Sequence[Entry]) -> None:
        """Take out `entries`, which are all in `segment`."""
        keys = segment.keys
        for entry in entries:
            del keys[entry.key]
        if len(keys) <= segment.sparse_keys:
            self.shrink(segment)

    def take_keys(self, segment: Segment) -> tuple[dict[str, None], int]:
        """Take out all that is in `segment`: its `keys` and `sparse_keys`."""
        keys, segment.keys = segment.keys, {}
        self._drop(segment)
        return keys, segment.sparse_keys

    def pop(self) -> str:
        """Take out the oldest key, of a chain the deepest."""
        segment = next(iter(self.segments))
        if segment.is_chain:
            return self.pop_newest(segment)
        key = next(iter(segment.keys))
        del segment.keys[key]
        if not segment.keys:
            self._drop(segment)
        return key

    def pop_newest(self, segment: Segment) -> str:
        """Take out the newest key of `segment`, of a chain the deepest."""
        key, _ = segment.keys.popitem()
        if not segment.keys:
            self._drop(segment)
        return key

    def shrink(self, segment: Segment) -> None:
        """A dict never gives back memory; a copy of its rest takes only what that needs."""
        if not segment.keys:
            self._drop(segment)
        elif segment is not self._open:
            segment.keys = dict.fromkeys(segment.keys)
            segment.sparse_keys = 0

    def _drop(self, segment: Segment) -> None:
        del self.segments[segment]
        if segment is self._open:
            self._open = None
