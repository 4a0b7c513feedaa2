"""What an eviction policy remembers of keys that have left."""

from array import array

_PAGE_SLOTS = 4096
_SLOTS_AN_ENTRY = 4
_SECONDS = (1 << 20) - 1


class Remembered:
    """Class and time of last use of keys that left: about four for each entry held.

    One slot of 4 bytes for each hash: a key that falls on another one's slot replaces it, and one
    in 256 strangers is taken for it. Times are whole seconds and repeat after 12 days. Memory
    comes by pages as it is needed, so that no call takes long; where the table has to grow,
    everything is forgotten.
    """

    def __init__(self) -> None:
        self._pages: list[array[int] | None] = [None]
        self._slots = 256

    def reserve(self, entries: int) -> None:
        """Be as large as `entries` entries need."""
        while self._slots < _SLOTS_AN_ENTRY * entries:
            self._slots *= 2
            self._pages = [None] * max(1, self._slots // _PAGE_SLOTS)

    def put(self, key: str, rank: int, used_at_seconds: float) -> None:
        """Remember `key`; `rank` is 0 to 14."""
        hashed = hash(key)
        slot = (hashed >> 8) % self._slots
        page = self._pages[slot // _PAGE_SLOTS]
        if page is None:
            page = array("I", bytes(4 * min(self._slots, _PAGE_SLOTS)))
            self._pages[slot // _PAGE_SLOTS] = page
        seconds = int(used_at_seconds) & _SECONDS
        page[slot % _PAGE_SLOTS] = (hashed & 0xFF) << 24 | (rank + 1) << 20 | seconds

    def take(self, key: str, now_seconds: float) -> tuple[int, float] | None:
        """Forget `key`: its class and the seconds since its last use; None for a stranger."""
        hashed = hash(key)
        slot = (hashed >> 8) % self._slots
        page = self._pages[slot // _PAGE_SLOTS]
        if page is None:
            return None
        note = page[slot % _PAGE_SLOTS]
        if not note or note >> 24 != hashed & 0xFF:
            return None
        page[slot % _PAGE_SLOTS] = 0
        return (note >> 20 & 15) - 1, (int(now_seconds) - note) & _SECONDS
