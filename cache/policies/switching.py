"""From one eviction policy to another while the cache serves, in steps."""

from collections.abc import Callable, Sequence

from cache.entry import Entry
from cache.policies.policy import EvictionPolicy

CHAIN = 64


class Switching(EvictionPolicy):
    """Hands the entries of an older policy over to a newer one, some at a time.

    They go in the order in which they would have left. What the newer one has is therefore worth
    less than what the older one still has, and leaves first; what is added meanwhile goes to the
    older one. Switching again before the end makes a third one behind the two, and so on.
    """

    def __init__(
        self,
        older: EvictionPolicy,
        entries: int,
        newest: EvictionPolicy,
        entry_of: Callable[[str], Entry],
    ) -> None:
        """`older` holds `entries` entries, which `entry_of` finds by their keys."""
        self.newest = newest
        self._entry_of = entry_of
        self._policies: list[EvictionPolicy] = [older, newest]
        self._counts = [entries, 0]
        if isinstance(older, Switching):
            self._policies[:1] = older._policies
            self._counts[:1] = older._counts

    def hand_over(self, entries: int, now_ns: int) -> bool:
        """Pass on so many entries; True when the newest policy holds all."""
        for start in range(0, entries, CHAIN):
            count = min(entries - start, CHAIN, self._counts[-2])
            batch = [self._entry_of(self._policies[-2].pop()) for _ in range(count)]
            self._counts[-2] -= count
            self._counts[-1] += count
            for entry in batch:
                entry.place = None
            if batch:
                self.newest.chain_added(batch[::-1], None, now_ns)
            if not self._counts[-2]:
                del self._policies[-2], self._counts[-2]
                if len(self._policies) == 1:
                    return True
        return False

    def holds(self, entry: Entry) -> bool:
        """One of them does."""
        return any(policy.holds(entry) for policy in self._policies)

    def added(self, entry: Entry, now_ns: int) -> None:
        """To the oldest: it is worth more than what was handed over."""
        self.chain_added((entry,), None, now_ns)

    def used(self, entries: Sequence[Entry]) -> None:
        """Each where it is."""
        for policy, own in self._shares(entries):
            policy.used(own)

    def removed(self, entry: Entry) -> None:
        """From where it is."""
        number = self._number_of(entry)
        self._policies[number].removed(entry)
        self._counts[number] -= 1
        entry.place = None  # its replacement can go to another policy, whose note it is not

    def pop(self) -> str:
        """What the newest one says of what it has; then of what is left to the older ones."""
        number = max(number for number, count in enumerate(self._counts) if count)
        self._counts[number] -= 1
        return self._policies[number].pop()

    def chain_added(self, entries: Sequence[Entry], parent: Entry | None, now_ns: int) -> None:
        """Where the parent is, else to the oldest."""
        number = 0 if parent is None else self._number_of(parent)
        self._policies[number].chain_added(entries, parent, now_ns)
        self._counts[number] += len(entries)

    def chain_used(self, entries: Sequence[Entry], now_ns: int) -> None:
        """Each part of the chain where it is."""
        for policy, own in self._shares(entries):
            policy.chain_used(own, now_ns)

    def chain_moved(self, entries: Sequence[Entry], parent: Entry | None, now_ns: int) -> None:
        """Each part of the chain where it is."""
        for policy, own in self._shares(entries):
            known = parent if parent is not None and policy.holds(parent) else None
            policy.chain_moved(own, known, now_ns)

    def _number_of(self, entry: Entry) -> int:
        return next(n for n, policy in enumerate(self._policies) if policy.holds(entry))

    def _shares(self, entries: Sequence[Entry]) -> list[tuple[EvictionPolicy, list[Entry]]]:
        shares = [(p, [entry for entry in entries if p.holds(entry)]) for p in self._policies]
        return [(policy, own) for policy, own in shares if own]
