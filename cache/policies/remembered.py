"""What an eviction policy remembers of keys that have left."""

import mmap
from collections.abc import Iterable, Sequence

from cache.entry import Entry

_SLOT_BYTES = 8
_TIME = (1 << 40) - 1
_MARK = 0x7FFFF << 44  # of the hash; the class is between it and the time
_MS = 1_000_000


class Remembered:
    """Class and time of last use of keys that left: one to two for each entry held.

    One slot of 8 bytes for each hash: a key that falls on another one's slot replaces it, and one
    stranger in half a million is taken for another. Times are milliseconds. The system gives its
    memory page by page as it is written, so that no call takes long; where the table has to
    grow, all is forgotten.
    """

    def __init__(self) -> None:
        self._make_table(512)

    def reserve(self, entries: int) -> None:
        """Be as large as `entries` entries need."""
        slots = self._slots
        while slots < entries:
            slots *= 2
        if slots > self._slots:
            self._make_table(slots)

    def put(self, keys: Iterable[str], rank: int, used_at_ns: int) -> None:
        """Remember `keys`, which were used together; `rank` is 0 to 14."""
        table, in_table = self._table, self._slots - 1
        note = (rank + 1) << 40 | used_at_ns // _MS & _TIME
        for key in keys:
            hashed = hash(key)
            table[hashed & in_table] = hashed & _MARK | note

    def take(self, entries: Sequence[Entry], now_ns: int) -> list[tuple[int, float] | None]:
        """Forget the keys of `entries`: each one's class and the seconds since its last use.

        None for a stranger.
        """
        table, in_table = self._table, self._slots - 1
        taken: list[tuple[int, float] | None] = []
        for entry in entries:
            hashed = hash(entry.key)
            note = table[hashed & in_table]
            if not note or (note ^ hashed) & _MARK:
                taken.append(None)
            else:
                table[hashed & in_table] = 0
                taken.append(((note >> 40 & 15) - 1, ((now_ns // _MS - note) & _TIME) / 1000))
        return taken

    def _make_table(self, slots: int) -> None:
        self._slots = slots
        # Private: by default a process that is forked would share it, and forget for both.
        pages = mmap.mmap(-1, slots * _SLOT_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._table = memoryview(pages).cast("Q")
