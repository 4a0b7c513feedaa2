"""What an eviction policy remembers of keys that have left."""

from array import array

_PAGE_BITS = 12
_IN_PAGE = (1 << _PAGE_BITS) - 1
_TIME = (1 << 40) - 1
_MARK = 0x7FFFF << 44  # of the hash; the class is between it and the time
_MS = 1_000_000


class Remembered:
    """Class and time of last use of keys that left: one to two for each entry held.

    One slot of 8 bytes for each hash: a key that falls on another one's slot replaces it, and one
    stranger in half a million is taken for another. Times are milliseconds. Memory comes by pages
    as it is needed, so that no call takes long; where the table has to grow, all is forgotten.
    """

    def __init__(self) -> None:
        self._pages: list[array[int] | None] = [None]
        self._slots = 256

    def reserve(self, entries: int) -> None:
        """Be as large as `entries` entries need."""
        while self._slots < entries:
            self._slots *= 2
            self._pages = [None] * max(1, self._slots >> _PAGE_BITS)

    def put(self, key: str, rank: int, used_at_ns: int) -> None:
        """Remember `key`; `rank` is 0 to 14."""
        hashed = hash(key)
        slot = hashed & self._slots - 1
        page = self._pages[slot >> _PAGE_BITS]
        if page is None:
            page = array("Q", bytes(8 * min(self._slots, _IN_PAGE + 1)))
            self._pages[slot >> _PAGE_BITS] = page
        page[slot & _IN_PAGE] = hashed & _MARK | (rank + 1) << 40 | used_at_ns // _MS & _TIME

    def take(self, key: str, now_ns: int) -> tuple[int, float] | None:
        """Forget `key`: its class and the seconds since its last use; None for a stranger."""
        hashed = hash(key)
        slot = hashed & self._slots - 1
        page = self._pages[slot >> _PAGE_BITS]
        if page is None:
            return None
        note = page[slot & _IN_PAGE]
        if not note or (note ^ hashed) & _MARK:
            return None
        page[slot & _IN_PAGE] = 0
        return (note >> 40 & 15) - 1, ((now_ns // _MS - note) & _TIME) / 1000
