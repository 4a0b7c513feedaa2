"""The answer to an mget: which values it has room for."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from cache.entry import Entry
from schemas.cache import BATCH_ANSWER_BYTES, INLINE_LIMIT_BYTES
from schemas.protocols import Answer

SIZE_BYTES = 8
"""In the line of sizes, at most: values that fit have six digits."""
LEFT_OUT = -1
_encode = msgspec.json.encode


class Reply:
    """The answer to an mget while it is made: for each key a size, None or LEFT_OUT."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self.sizes: list[int | None] = [None] * len(keys)
        self.is_full = False
        self._taken: dict[int, tuple[Entry, bytes]] = {}
        self.room_bytes = BATCH_ANSWER_BYTES - SIZE_BYTES * len(keys) - 2

    def offer(self, place: int, entry: Entry) -> bool:
        """Take the entry in, if its value still fits; whether it does.

        Raises:
            OSError: its file was removed or cut by somebody else.
        """
        size = entry.value_bytes
        if size > min(self.room_bytes, INLINE_LIMIT_BYTES):
            self.is_full = self.is_full or size <= INLINE_LIMIT_BYTES
            self.sizes[place] = LEFT_OUT
            return False
        self._taken[place] = entry, entry.payload()
        self.room_bytes -= size
        self.sizes[place] = size
        return True

    @property
    def taken(self) -> int:
        """How many values are in it."""
        return len(self._taken)

    def classes(self, name: str | None) -> Counter[str]:
        """How many of the values in it count for which class: `name`, else each one's own."""
        if name:
            return Counter({name: self.taken})
        return Counter(
            entry.request_class for entry, _ in self._taken.values() if entry.request_class
        )

    def entry(self, place: int) -> Entry | None:
        """What is answered there."""
        return self._taken[place][0] if place in self._taken else None

    def answer(self) -> Answer:
        """The line of sizes and the values."""
        values = (self._taken[place][1] for place in sorted(self._taken))
        return Answer(b"".join((_encode(self.sizes), b"\n", *values)))
