"""What the cache asks of an eviction policy."""

import abc
from collections.abc import Sequence

from cache.entry import Entry


class EvictionPolicy(abc.ABC):
    """Keeps the order in which the entries in RAM should leave. Every method is O(1) an entry.

    The cache calls it under its lock. A chain is a list of entries, root first, each the prefix
    of the next: without its head a tail is useless, so a tail should leave first. What is said
    of chains here makes that so for a policy that knows single entries only.

    `entry.place` belongs to the policy while it holds the entry. An entry that replaces another
    one of its key is added with that one's place. `now_ns` may step back; order must not.
    """

    @abc.abstractmethod
    def added(self, entry: Entry, now_ns: int) -> None:
        """`entry` is new."""

    @abc.abstractmethod
    def used(self, entries: Sequence[Entry]) -> None:
        """`entries` were looked up one after the other, each at its `last_accessed_ns`.

        One that has no place has left since.
        """

    @abc.abstractmethod
    def removed(self, entry: Entry) -> None:
        """`entry` was deleted, replaced, or has expired."""

    def renewed(self, entry: Entry, now_ns: int) -> None:
        """`entry`, held here, is another one now, of the same key."""
        self.removed(entry)
        self.added(entry, now_ns)

    @abc.abstractmethod
    def pop(self) -> str:
        """Take out the key that should leave next; only called while there is one."""

    @abc.abstractmethod
    def holds(self, entry: Entry) -> bool:
        """Whether `entry` was added here and has not left since."""

    def chain_added(self, entries: Sequence[Entry], parent: Entry | None, now_ns: int) -> None:
        """`entries` are new and extend `parent`, in use just now; None: they begin a chain."""
        for entry in reversed(entries):
            self.added(entry, now_ns)

    def chain_used(self, entries: Sequence[Entry], now_ns: int) -> None:
        """`entries` were looked up together."""
        self.used(entries[::-1])

    def chain_moved(  # noqa: B027 - to change nothing is right for most
        self, entries: Sequence[Entry], parent: Entry | None, now_ns: int
    ) -> None:
        """`entries`, which extend `parent` (as above), are in use, but were not looked up."""
