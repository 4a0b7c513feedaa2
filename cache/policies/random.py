"""Any entry, each as likely."""

import random
from collections.abc import Sequence

from cache.entry import Entry
from cache.policies.policy import EvictionPolicy


class Random(EvictionPolicy):
    """A list of the keys; `entry.place` is the index in it."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._random = random.Random()  # noqa: S311 - which entry leaves is no secret

    def added(self, entry: Entry, now_ns: int) -> None:
        """One more to draw from."""
        entry.place = len(self._entries)
        self._entries.append(entry)

    def used(self, entries: Sequence[Entry]) -> None:
        """Changes nothing."""

    def removed(self, entry: Entry) -> None:
        """The last one of the list takes its index."""
        last = self._entries.pop()
        if last is not entry:
            self._entries[entry.place] = last
            last.place = entry.place

    def pop(self) -> str:
        """Any one."""
        entry = self._random.choice(self._entries)
        self.removed(entry)
        return entry.key

    def holds(self, entry: Entry) -> bool:
        """In the list."""
        index = entry.place
        return (
            isinstance(index, int) and index < len(self._entries) and self._entries[index] is entry
        )
